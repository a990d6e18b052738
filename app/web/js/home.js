// Start page: the predictions with their current states, and the forms to submit one study or several.

import { get } from "./api.js";
import { buildBatch } from "./batch.js";
import { byId, el, timeOf } from "./dom.js";
import { channelName } from "./explanation.js";
import { startSession } from "./login.js";
import { showProblem } from "./problem.js";
import { answerCell, probabilityCell, redraw, reviewerCell, stateCell } from "./rows.js";
import { refreshStudies } from "./studies.js";
import { buildForm } from "./submit.js";
import { t, translatePage } from "./texts.js";

const refreshEvery = 2000;
let cursors = [null];
let asked = 0; // number of the newest request; an older response is not drawn

const inputNames = { cbf: "CBF", cbv: "CBV", mtt: "MTT", ctp: "CTP" };

function row(prediction) {
  const { id, subject, model, created, inputs } = prediction;
  const names = Object.keys(inputs).map((name) => inputNames[name] || channelName(name)).join(", ");
  return el("tr", { "data-id": id },
    el("td", {}, el("a", { href: `/predictions/${encodeURIComponent(id)}` }, timeOf(created))),
    el("td", {}, subject || "–"),
    el("td", {}, names || t("record only")),
    el("td", {}, `${model.name}@${model.version}`),
    stateCell(prediction), probabilityCell(prediction), answerCell(prediction), reviewerCell(prediction));
}

const filters = () => Object.fromEntries([...new FormData(byId("filters"))].map(([name, value]) => [name, value.trim()])
  .filter(([, value]) => value));

async function refresh() {
  const number = ++asked;
  const chosen = filters();
  try {
    const items = [];
    let next = null;
    for (const cursor of cursors) {
      const page = await get(`/v1/predictions?${new URLSearchParams({ ...chosen, limit: 20, ...(cursor ? { cursor } : {}) })}`);
      items.push(...page.items);
      next = page.next;
    }
    if (number !== asked) return;
    const filtered = Object.keys(chosen).some((name) => name !== "sort");
    redraw(byId("recent"), items.length ? items.map(row) : [el("tr", {}, el("td", { colspan: 8, class: "quiet" },
      filtered ? t("No prediction matches the filters.") : t("None yet. Submit a study below.")))]);
    byId("older").hidden = !next;
    byId("older").onclick = () => { cursors.push(next); refresh(); };
    byId("list-problem").replaceChildren();
  } catch (problem) {
    if (number === asked) showProblem(byId("list-problem"), problem, start);
  }
}

/** Column heads that set the order; a second click turns it round. */
function sortByHeads() {
  const order = byId("filters").elements.sort;
  const heads = [...document.querySelectorAll("#list [data-sort]")];
  const show = () => {
    for (const head of heads) {
      const name = order.value.replace("-", "");
      const sorted = order.value.startsWith("-") ? "descending" : "ascending";
      head.closest("th").ariaSort = name === head.dataset.sort ? sorted : "none";
    }
  };
  for (const head of heads) {
    head.onclick = () => {
      const name = head.dataset.sort;
      const first = name === "subject" ? name : `-${name}`;
      order.value = order.value === first ? (first === name ? `-${name}` : name) : first;
      changed();
    };
  }
  const changed = () => {
    cursors = [null];
    show();
    refresh();
  };
  byId("filters").oninput = changed;
  byId("filters").onsubmit = (event) => event.preventDefault();
  show();
}

async function offerModels() {
  const select = byId("filters").elements.model;
  if (select.options.length > 1) return;
  for (const { name } of await get("/v1/models")) select.append(new Option(name));
}

async function start() {
  await refresh();
  refreshStudies().catch(() => {}); // the list of predictions shows the problem
  await buildForm();
  buildBatch();
  await offerModels().catch(() => {}); // the form says why the models cannot be read
}

translatePage();
sortByHeads();
await startSession();
start();
setInterval(() => {
  if (document.hidden) return;
  refresh();
  refreshStudies().catch(() => {});
}, refreshEvery);
