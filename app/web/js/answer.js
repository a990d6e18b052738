// The result: warnings first, then probability, spread of the folds, decision and notes.

import { byId, el, icon, percent } from "./dom.js";

const classes = { "refractory": "refractory", "not-refractory": "not refractory" };

/** Drawing of probability, spread of the folds and threshold on one axis from 0 to 1. */
function scale({ probability, interval, decision }) {
  const x = (value) => 20 + 560 * value;
  const text = (value, y, content, anchor = "middle") =>
    el("svg:text", { x: x(value), y, "text-anchor": anchor, "font-size": 12, fill: "#5b6b7b" }, content);
  const spread = interval && el("svg:line", { x1: x(interval.low), x2: x(interval.high), y1: 30, y2: 30,
    stroke: "#9bb8cc", "stroke-width": 12 });
  const limit = decision && [
    el("svg:line", { x1: x(decision.threshold), x2: x(decision.threshold), y1: 16, y2: 44, stroke: "#1b2733",
      "stroke-width": 1.5, "stroke-dasharray": "3 3" }),
    text(decision.threshold, 11, "threshold")];
  const colour = decision ? (decision.refractory ? "#d55e00" : "#0072b2") : "#5b6b7b";
  return el("svg:svg", { viewBox: "0 0 600 64", class: "scale", role: "img",
    "aria-label": `Probability ${percent(probability)}${decision ? `, threshold ${percent(decision.threshold)}` : ""}` },
  el("svg:line", { x1: x(0), x2: x(1), y1: 30, y2: 30, stroke: "#d5dde5", "stroke-width": 6, "stroke-linecap": "round" }),
  spread,
  ...(limit || []),
  el("svg:circle", { cx: x(probability), cy: 30, r: 8, fill: colour }),
  text(0, 60, "0 %"), text(0.5, 60, "50 %"), text(1, 60, "100 %"));
}

function conformal({ conformal: left }) {
  if (!left) return null;
  if (left.length === 1) return `Conformal prediction set: only “${classes[left[0]] || left[0]}”.`;
  return left.length
    ? "Conformal prediction set: both classes. The result is uncertain."
    : "Conformal prediction set: empty. This patient differs from the training patients.";
}

/** What an interval is: the spread of the folds has no level. */
const intervalName = ({ kind, level, coverage }) => kind === "calibrated"
  ? `${percent(level)} interval (measured coverage ${percent(coverage)})` : "spread of the folds";

/** A flag with icon and word of its severity, its text and what to do. */
const flagItem = ({ code, detail, severity, action }) => el("li", {},
  icon(severity), " ", el("strong", {}, severity === "warning" ? "Warning" : "Info"), ` ${detail}. `,
  action && action !== "None." ? `What to do: ${action} ` : null,
  el("span", { class: "flag" }, code));

/** The first line of the answer; warnings are listed below it. */
function showSummary({ summary, withheld, flags }) {
  const warnings = flags.filter(({ severity }) => severity === "warning");
  const panel = byId("summary");
  panel.className = warnings.length ? "panel alert" : "panel";
  panel.setAttribute("role", warnings.length ? "alert" : "status");
  panel.replaceChildren(...[
    el("p", { class: "summary" }, warnings.length ? icon("warning") : null, ` ${summary}`),
    warnings.length ? el("ul", { class: "flags" }, ...warnings.map(flagItem)) : null,
    withheld.length ? el("p", {}, "Probability and reasons below serve to check the study. They are no decision. If the study ",
      "is right, send it again and choose “Give a decision in spite of warnings”.") : null,
  ].filter(Boolean));
}

function verdict({ decision, withheld }) {
  if (!decision) {
    return el("div", { class: "decision withheld" }, icon("warning"), " ", withheld.length ? "decision withheld" : "no decision",
      el("div", { class: "quiet" }, withheld.join(", ")));
  }
  return el("div", { class: decision.refractory ? "decision raises" : "decision lowers" },
    decision.refractory ? "refractory" : "not refractory",
    el("div", { class: "quiet" }, `${decision.refractory ? "above" : "below"} the threshold of ${percent(decision.threshold)}`));
}

export function showAnswer(prediction) {
  const { probability, interval, decision, folds, flags } = prediction;
  showSummary(prediction);
  byId("result").replaceChildren(...[
    el("div", { class: "verdict" }, el("div", { class: "probability" }, percent(probability)), verdict(prediction)),
    scale(prediction),
    el("p", {}, "Probability of a refractory occlusion: final stenosis > 50 %, eTICI 0–2a, or rescue treatment",
      interval ? `; ${intervalName(interval)} ${percent(interval.low)} to ${percent(interval.high)}.` : "."),
    decision && conformal(decision) && el("p", {}, conformal(decision)),
    el("p", { class: "quiet" }, `Folds: ${folds.map(percent).join(", ")}.`, decision ? ` Threshold rule: ${decision.rule}.` : ""),
  ].filter(Boolean));
  const infos = flags.filter(({ severity }) => severity !== "warning");
  byId("flags").replaceChildren(...(infos.length
    ? infos.map(flagItem) : [el("li", { class: "quiet" }, flags.length ? "See the warnings above."
      : "No value was imputed and no check raised a note.")]));
}
