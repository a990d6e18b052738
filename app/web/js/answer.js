// The result: warnings first, then headline, probability, origin of the model, spread of the networks and notes.

import { byId, el, icon, words } from "./dom.js";
import { headlines, intervalName, isSynthetic, percent, ruleText, setText, syntheticNotice } from "./explanation.js";
import { t } from "./texts.js";

/** Drawing of probability, spread of the networks and threshold on one axis from 0 to 1. */
function scale({ probability, interval, decision, folds }) {
  const x = (value) => 20 + 560 * value;
  const text = (value, y, content, anchor = "middle") =>
    el("svg:text", { x: x(value), y, "text-anchor": anchor, "font-size": 12, fill: "var(--quiet)" }, content);
  const spread = interval && el("svg:line", { x1: x(interval.low), x2: x(interval.high), y1: 30, y2: 30,
    stroke: "var(--spread)", "stroke-width": 12 }, el("svg:title", {}, intervalName(interval, folds)));
  const limit = decision && [
    el("svg:line", { x1: x(decision.threshold), x2: x(decision.threshold), y1: 16, y2: 44, stroke: "var(--ink)",
      "stroke-width": 1.5, "stroke-dasharray": "3 3" }),
    text(decision.threshold, 11, t("threshold"))];
  const said = decision ? t("Probability {probability}, threshold {threshold}",
    { probability: percent(probability), threshold: percent(decision.threshold) })
    : t("Probability {probability}", { probability: percent(probability) });
  return el("svg:svg", { viewBox: "0 0 600 64", class: "scale", role: "img", "aria-label": said },
    el("svg:line", { x1: x(0), x2: x(1), y1: 30, y2: 30, stroke: "var(--line)", "stroke-width": 6, "stroke-linecap": "round" }),
    spread,
    ...(limit || []),
    el("svg:circle", { cx: x(probability), cy: 30, r: 8, fill: "var(--ink)" }),
    text(0, 60, "0 %"), text(0.5, 60, "50 %"), text(1, 60, "100 %"));
}

const listsFields = ["imputed", "not-used"];

/** Detail of a flag, with the fields of the record in words. */
const detailOf = ({ code, detail }) =>
  (listsFields.includes(code) ? detail.replace(/\b[a-z][a-z0-9]*([._][a-z0-9]+)+\b/g, (name) => t(words(name))) : detail)
    .replace(/\.$/, "");

/** A flag with icon and word of its severity, its text and what to do. */
const flagItem = ({ code, detail, severity, action, name }) => el("li", {},
  icon(severity), " ", el("strong", {}, severity === "warning" ? t("Warning") : t("Info")), ` ${detailOf({ code, detail })}. `,
  action && action !== "None." ? t("What to do: {action}", { action }) + " " : null,
  el("span", { class: "flag" }, name));

/** The first line of the answer; warnings are listed below it. */
function showSummary({ summary, withheld, flags }) {
  const warnings = flags.filter(({ severity }) => severity === "warning");
  const panel = byId("summary");
  panel.className = warnings.length ? "panel alert" : "panel";
  panel.setAttribute("role", warnings.length ? "alert" : "status");
  panel.replaceChildren(...[
    el("p", { class: "summary" }, warnings.length ? icon("warning") : null, ` ${summary}`),
    warnings.length ? el("ul", { class: "flags" }, ...warnings.map(flagItem)) : null,
    withheld.length ? el("p", {}, t("Probability and reasons below serve to check the study. They are no decision.") + " "
      + t("If the study is right, send it again and choose “Give a decision in spite of warnings”.")) : null,
  ].filter(Boolean));
}

/** The headline, what the conformal set says, and the side of the threshold. */
function verdict({ decision, withheld, headline, flags }) {
  const word = headline ? t(headlines[headline]) : t("No decision");
  const colour = { "refractory": " raises", "not-refractory": " lowers", "withheld": " withheld" }[headline] || "";
  const names = withheld.map((code) => flags.find((flag) => flag.code === code)?.name || code);
  return el("div", { class: `decision${colour}` }, headline === "withheld" ? icon("warning") : null, ` ${word}`,
    decision && setText(decision) ? el("div", { class: "quiet" }, setText(decision)) : null,
    decision ? el("div", { class: "quiet" },
      t(decision.refractory ? "above the threshold of {threshold}" : "below the threshold of {threshold}",
        { threshold: percent(decision.threshold) })) : null,
    names.length ? el("div", { class: "quiet" }, names.join(", ")) : null);
}

/** Notes of a study: flags that are not warnings. */
function showNotes(flags, infos) {
  byId("flags").replaceChildren(...(infos.length
    ? infos.map(flagItem) : [el("li", { class: "quiet" }, flags.length ? t("See the warnings above.")
      : t("No value was imputed and no check raised a note."))]));
}

/** A study of a silent trial: it is received and computed, and its answer is not shown. */
export function showSealed({ sealed, summary, withheld, flags }) {
  showSummary({ summary, withheld, flags });
  byId("result").replaceChildren(
    el("p", {}, t("The silent trial {trial} seals the answer: it is computed and stored, and not shown to anyone at the site.", { trial: sealed })),
    el("p", { class: "quiet" }, t("Treat the patient as without this service, and record the outcome below.")));
  showNotes(flags, flags.filter(({ severity }) => severity !== "warning"));
  for (const name of ["reasons", "perfusion"]) byId(name).closest("section").hidden = true;
  byId("no-review").textContent = t("The answer is sealed, so there is none to review.");
}

export function showAnswer(prediction) {
  const { probability, interval, decision, folds, flags } = prediction;
  showSummary(prediction);
  const spread = interval && t("{name}: {low} to {high}",
    { name: intervalName(interval, folds), low: percent(interval.low), high: percent(interval.high) });
  byId("result").replaceChildren(...[
    el("div", { class: "verdict" }, el("div", { class: "probability" }, percent(probability)), verdict(prediction)),
    isSynthetic(flags) ? el("p", { class: "origin" }, icon("warning"), ` ${t(syntheticNotice)}`) : null,
    scale(prediction),
    el("p", {}, t("Probability of a refractory occlusion: final stenosis > 50 %, eTICI 0–2a, or rescue treatment.")),
    el("p", { class: "quiet" }, ...[
      spread ? `${spread[0].toUpperCase()}${spread.slice(1)}. ` : "",
      folds?.length > 1 ? t("Each network: {list}.", { list: folds.map(percent).join(", ") }) + " " : "",
      decision ? t("Rule of the threshold: {rule}.", { rule: ruleText(decision.rule) }) : ""]),
  ].filter(Boolean));
  // The origin of the model stands beside the number.
  showNotes(flags, flags.filter(({ severity, code }) => severity !== "warning" && code !== "synthetic-training"));
}
