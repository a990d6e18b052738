// The first page: recent predictions with live states, and a form to send a study by hand.

import { get } from "./api.js";
import { byId, el, percent } from "./dom.js";
import { showProblem } from "./problem.js";
import { buildForm } from "./submit.js";

const refreshEvery = 2000;
let cursors = [null];

function row(prediction) {
  const state = prediction.status === "running" && prediction.stage ? prediction.stage : prediction.status;
  const decision = prediction.decision ? (prediction.decision.refractory ? "refractory" : "not refractory") : "";
  return el("tr", {},
    el("td", {}, new Date(prediction.created).toLocaleString()),
    el("td", {}, prediction.subject || "–"),
    el("td", {}, `${prediction.model.name}@${prediction.model.version}`),
    el("td", {}, el("span", { class: `state ${prediction.status}` }, state)),
    el("td", { class: "number" }, prediction.probability == null ? "" : percent(prediction.probability)),
    el("td", {}, decision),
    el("td", {}, el("a", { href: `/predictions/${encodeURIComponent(prediction.id)}` }, "Open")));
}

async function refresh() {
  try {
    const items = [];
    let next = null;
    for (const cursor of cursors) {
      const page = await get(`/v1/predictions?limit=20${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      items.push(...page.items);
      next = page.next;
    }
    byId("recent").replaceChildren(...(items.length
      ? items.map(row)
      : [el("tr", {}, el("td", { colspan: 7, class: "quiet" }, "None yet. Submit a study below."))]));
    byId("older").hidden = !next;
    byId("older").onclick = () => { cursors.push(next); refresh(); };
    byId("list-problem").replaceChildren();
  } catch (problem) {
    showProblem(byId("list-problem"), problem, start);
  }
}

async function start() {
  await refresh();
  await buildForm();
}

start();
setInterval(() => document.hidden || refresh(), refreshEvery);
