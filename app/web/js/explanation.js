// Rules and words of an answer, the same as in app/sdk/summary.py, app/core/display_names.py and explanation_text.py.
// tests/e2e/test_page_texts.py compares them.

import { t } from "./texts.js";

export const headlines = {
  "refractory": "Refractory", "not-refractory": "Not refractory", "undetermined": "Undetermined", "withheld": "Decision withheld",
};

const channels = { ncct: "NCCT", cta: "CTA", vessels: "vessel mask", tmax: "Tmax", rcbf: "relative CBF", intracranial: "what the network sees" };

export const channelName = (name) => t(channels[name] || name);

const rules = { "max-f1-out-of-fold": "largest F1 score in patients outside the training folds" };

/** Rule that chose a threshold, in words. */
export const ruleText = (rule) => t(rules[rule] || rule);

const counts = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/** What an interval is: “spread of the four networks”, or a level with its measured coverage. */
export function intervalName({ kind, level, coverage }, folds) {
  if (kind === "calibrated") {
    return t("{level} interval (measured coverage {coverage})", { level: percent(level), coverage: percent(coverage) });
  }
  const count = (folds || []).length;
  if (!count) return t("spread of the networks");
  return t("spread of the {count} networks", { count: count > counts.length ? count : t(counts[count - 1]) });
}

/** Number and sign never stand on two lines. */
export const percent = (value) => `${(100 * value).toFixed(0)}\u00a0%`;

const probability = (logOdds) => 1 / (1 + Math.exp(-logOdds));

/** Percentage points of the probability that a contribution makes: with it, minus without it. */
export const points = (total, logOdds) => 100 * (probability(total) - probability(total - logOdds));

/** Format a number with its sign; zero has a plus. */
export function signed(value, digits = 2) {
  const size = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(size) ? "−" : "+") + size;
}

/** “+8.1 points” */
export const pointsText = (total, logOdds) => t("{points} points", { points: signed(points(total, logOdds), 1) });

export const percentOf = (logOdds) => percent(probability(logOdds));

const bySize = (a, b) => Math.abs(b.contribution) - Math.abs(a.contribution);

/** The contributions, with those of values that were not given as one; the largest first. */
export function grouped(items) {
  const unknown = items.filter((item) => !item.known);
  const one = {
    name: t("values not given ({count})", { count: unknown.length }), shown: "", known: false,
    contribution: unknown.reduce((sum, item) => sum + item.contribution, 0),
  };
  return [...items.filter((item) => item.known), ...(unknown.length ? [one] : [])].sort(bySize);
}

/** Share of each image's absolute regional contributions outside the brain, as [[modality, share]]. */
export function outsideBrain({ imaging, regions }) {
  const size = (parts) => parts.reduce((sum, part) => sum + Math.abs(part.contribution), 0);
  return imaging.flatMap(({ modality }) => {
    const parts = regions.filter((part) => part.modality === modality);
    const total = size(parts);
    return total ? [[modality, size(parts.filter(({ region }) => region === "other")) / total]] : [];
  });
}

/** First line of the reasons. */
export function outsideText(attribution) {
  const shares = outsideBrain(attribution).map(([name, share]) => `${channelName(name)} ${percent(share)}`);
  return shares.length ? t("Of the image contributions, outside the brain: {shares}.", { shares: shares.join(", ") }) : "";
}

/** Side of the occlusion, and whether it was sent or found in the images; empty if it is unknown. */
export function sideText(affected, flags) {
  if (!affected) return "";
  return flags.some(({ code }) => code === "side-from-images")
    ? t("The occlusion is taken to be {side} (from the images).", { side: t(affected) })
    : t("The occlusion is on the {side} (from the record).", { side: t(affected) });
}

/** What the conformal set says about the headline; empty without a set. */
export function setText({ conformal }) {
  if (!conformal) return "";
  if (!conformal.length) return t("the probability lies between the two cut-offs");
  return conformal.length > 1 ? t("neither class can be excluded") : t("the other class is excluded");
}

export const syntheticNotice = "Trained on synthetic patients only: the number says nothing about a real patient.";

export const isSynthetic = (flags) => flags.some(({ code }) => code === "synthetic-training");
