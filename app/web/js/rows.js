// Cells that the list of predictions and the table of a batch share: state, probability, answer, reviewers.

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
