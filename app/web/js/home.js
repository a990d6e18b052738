// Start page: recent predictions with their current states, and the form to submit a study.

import { get } from "./api.js";
import { byId, el, icon, timeOf } from "./dom.js";
import { channelName, headlines, percent } from "./explanation.js";
import { showProblem } from "./problem.js";
import { buildForm } from "./submit.js";
import { t, translatePage } from "./texts.js";

const refreshEvery = 2000;
let cursors = [null];

const working = ({ status, stage, progress }) =>
  (status === "running" ? el("progress", { max: 1, value: progress, "aria-label": `${stage || "running"}: ${percent(progress)}` }) : null);

const inputNames = { cbf: "CBF", cbv: "CBV", mtt: "MTT", ctp: "CTP" };

function row(prediction) {
  const { id, status, stage, waiting, subject, model, probability, withheld, created, inputs, headline, error } = prediction;
  const answer = error ? [error.title] : headline === "withheld" ? [icon("warning"), ` ${t(headlines.withheld)}`]
    : [headline ? t(headlines[headline]) : ""];
  const names = Object.keys(inputs).map((name) => inputNames[name] || channelName(name)).join(", ");
  const state = waiting ? waiting.reason.replaceAll("-", " ") : status === "running" ? stage || status : status;
  return el("tr", {},
    el("td", {}, el("a", { href: `/predictions/${encodeURIComponent(id)}` }, timeOf(created))),
    el("td", {}, subject || "–"),
    el("td", {}, names || t("record only")),
    el("td", {}, `${model.name}@${model.version}`),
    el("td", {}, el("span", { class: `state ${status}` }, t(state)), working(prediction)),
    el("td", { class: "number" }, probability == null ? "" : percent(probability)),
    el("td", { class: headline === "refractory" ? "raises" : "", title: withheld.join(", ") || null }, ...answer));
}

/** Redraw only changed rows, so that focus and selection stay in place. */
function draw(rows) {
  const body = byId("recent");
  rows.forEach((row, index) => {
    const old = body.children[index];
    if (!old) body.append(row);
    else if (!old.isEqualNode(row)) old.replaceWith(row);
  });
  while (body.children.length > rows.length) body.lastChild.remove();
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
    draw(items.length ? items.map(row)
      : [el("tr", {}, el("td", { colspan: 7, class: "quiet" }, t("None yet. Submit a study below.")))]);
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

translatePage();
start();
setInterval(() => document.hidden || refresh(), refreshEvery);
