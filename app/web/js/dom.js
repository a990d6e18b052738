// Create DOM elements. Text is never parsed as HTML, so content of the server cannot run as code.

import { language, t } from "./texts.js";

/** A number and its percent sign never stand on two lines. */
const kept = (child) => (typeof child === "string" ? child.replace(/(\d) %/g, "$1\u00a0%") : child);

/** Create an element with attributes and children; strings become text nodes. */
export function el(tag, attributes = {}, ...children) {
  const node = tag.includes(":")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.split(":")[1])
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map(kept));
  return node;
}

/** Icon of a severity: a triangle with an exclamation mark, or a circle with an i. */
export function icon(severity) {
  const warning = severity === "warning";
  return el("svg:svg", { viewBox: "0 0 20 20", class: "icon", "aria-hidden": "true" },
    warning ? el("svg:path", { d: "M10 1 19.5 18.5H.5z", fill: "var(--alert)" })
      : el("svg:circle", { cx: 10, cy: 10, r: 9, fill: "var(--lowers)" }),
    el("svg:path", { d: warning ? "M10 7v6M10 15v2" : "M10 4v2M10 8.5v7", stroke: "var(--paper)", "stroke-width": 2 }));
}

export const byId = (id) => document.getElementById(id);

/** Date and time in the zone of the reader, with the name of the zone. */
export const timeOf = (value) => new Date(value).toLocaleString(language, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short",
});

const acronyms = /\b(nihss|mrs|bp|crp|inr|ldl|ivt|tia|aspects|cbv|hu)\b/g;

const named = { clot_hu: "clot density", hba1c: "HbA1c" };

/** Display name of a field such as `atrial_fibrillation` or `perfusion.core_ml`, without its unit. */
export function words(name) {
  const last = name.split(".").pop();
  const stem = last.replace(/_(ml|mm|hu|mmol_l|mmol_mol)$/, "");
  return named[last] || named[stem] || plainWords(stem);
}

const plainWords = (stem) => stem
  .replaceAll("_", " ")
  .replace(acronyms, (letters) => letters.toUpperCase())
  .replace(/^tmax(\d+)/, "Tmax > $1 s")
  .replace("MRS", "mRS");

/** Text of at most `limit` characters. A number is shown whole or not at all: a part of 106 reads as another number. */
export function shortened(text, limit) {
  if (text.length <= limit) return text;
  const kept = text.slice(0, limit - 1);
  const whole = /\s/.test(text[limit - 1]) ? kept : kept.replace(/\s+\S*\d\S*$/, "") || kept;
  return `${whole}…`;
}

/** Format a clinical value for display. */
export function shown(value) {
  if (typeof value === "boolean") return value ? t("yes") : t("no");
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value).replaceAll("_", " ");
}
