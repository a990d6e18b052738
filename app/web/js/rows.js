// Cells that the list of predictions and the table of a batch share, and the renewal of a list's rows.

import { el, icon } from "./dom.js";
import { headlines, percent } from "./explanation.js";
import { t } from "./texts.js";

const working = ({ status, stage, progress }) =>
  (status === "running" ? el("progress", { max: 1, value: progress, "aria-label": `${t(stage || "running")}: ${percent(progress)}` }) : null);

export function stateCell(prediction) {
  const { status, stage, waiting } = prediction;
  const state = waiting ? waiting.reason.replaceAll("-", " ") : status === "running" ? stage || status : status;
  return el("td", {}, el("span", { class: `state ${status}` }, t(state)), working(prediction));
}

export const probabilityCell = ({ probability }) => el("td", { class: "number" }, probability == null ? "" : percent(probability));

/** The headline, or the reason of a failure. */
export function answerCell({ headline, withheld, error, sealed, status }) {
  if (sealed && status === "succeeded") return el("td", {}, t("sealed"));
  const answer = error ? [error.title] : headline === "withheld" ? [icon("warning"), ` ${t(headlines.withheld)}`]
    : [headline ? t(headlines[headline]) : ""];
  return el("td", { class: headline === "refractory" ? "raises" : "", title: withheld.join(", ") || null }, ...answer);
}

/** The last verdict of each reviewer. */
export const reviewerCell = ({ verdicts }) => el("td", {}, (verdicts || [])
  .map(({ reviewer, verdict }) => `${reviewer}: ${t(verdict === "agree" ? "agrees" : "overrides")}`).join(", "));

const focusable = "a[href], button, input, select, summary";

/**
 * Show these rows in a table's body. An unchanged row, known by its `data-id`, keeps its element and so the selection of
 * its text; the focus stays in its row, also if that row has changed or others come before it.
 */
export function redraw(body, rows) {
  const old = new Map([...body.children].map((row) => [row.dataset.id, row]));
  const wanted = rows.map((row) => (old.get(row.dataset.id)?.isEqualNode(row) ? old.get(row.dataset.id) : row));
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.closest("tr").dataset.id;
  const place = focused ? [...focused.closest("tr").querySelectorAll(focusable)].indexOf(focused) : -1;
  const staying = new Set(wanted);
  for (const row of [...body.children]) if (!staying.has(row)) row.remove();
  wanted.forEach((row, index) => {
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  if (!focused || focused === document.activeElement) return;
  const again = wanted.find((row) => row.dataset.id === key);
  again?.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
}
