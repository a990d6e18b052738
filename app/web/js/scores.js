// Published scores of the patient. They stand apart from the answer, because their target is another one.

import { byId, el } from "./dom.js";
import { t } from "./texts.js";

const short = (value) => String(Number(value.toPrecision(3)));

/** “12 of 20 points”, “7 to 18 of 20 points”, or “no item known”, as `ScoreSummary.text` of the client. */
export function sumText({ low, high, highest, unit, missing, items }) {
  if (missing.length === items) return t("no item known");
  const [from, to] = [short(low), short(high)];
  const values = { from, to, highest: short(highest), unit: t(unit) };
  return t(from === to ? "{from} of {highest} {unit}" : "{from} to {to} of {highest} {unit}", values);
}

const block = (score) => el("section", {},
  el("h3", {}, t(score.name)),
  el("p", {}, el("strong", {}, sumText(score))),
  score.missing.length ? el("p", {}, t("Not recorded: {items}. Without all items there is no score, only the range that they leave open.",
    { items: score.missing.map((item) => t(item)).join("; ") })) : null,
  el("p", { class: "quiet" }, t("Target: {target}.", { target: t(score.target) }), " ", t("Source: {source}.", { source: score.source })));

/** Without a record the panel stays hidden. */
export function showScores({ scores = [] }) {
  byId("scores-panel").hidden = scores.every(({ missing, items }) => missing.length === items);
  byId("scores").replaceChildren(
    el("p", {}, t("These scores answer another question than the model, and the model does not use them. They are not the probability of a refractory occlusion: an occlusion due to atherosclerosis may open, and an embolic one may be refractory.")),
    el("div", { class: "scores" }, ...scores.map(block)));
}
