// Create a table with a caption, column heads and right-aligned numbers.

import { el } from "./dom.js";
import { t } from "./texts.js";

/** @param heads [[text, class]]; @param rows arrays of text or nodes */
export const table = (caption, heads, rows) =>
  el("table", {}, caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...heads.map(([text, kind]) => el("th", { class: kind, scope: "col" }, t(text))))),
    el("tbody", {}, ...rows.map((cells) =>
      el("tr", {}, ...cells.map((cell, column) => el("td", { class: heads[column][1] }, cell))))));

/** Read the table that a figure of the service holds in its `desc` element, one line per row. */
export function tableOf(svg) {
  const said = new DOMParser().parseFromString(svg, "image/svg+xml").querySelector("desc")?.textContent || "";
  const [heads, ...rows] = said.split("\n").map((line) => line.split(" | "));
  return table("", heads.map((head, column) => [head, column === heads.length - 1 ? "number" : undefined]), rows);
}

/** A part that may be wider than the window: it scrolls, also with the keyboard. */
export const scrolling = (label, ...content) => el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label }, ...content);
