// A table as every part of these pages has it: a caption, heads, and numbers to the right.

import { el } from "./dom.js";

/** @param heads [[text, class]]; @param rows arrays of text or nodes */
export const table = (caption, heads, rows) =>
  el("table", {}, caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...heads.map(([text, kind]) => el("th", { class: kind, scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((cells) =>
      el("tr", {}, ...cells.map((cell, column) => el("td", { class: heads[column][1] }, cell))))));

/** The table that one of the service's figures carries in its `desc`, a line a row. */
export function tableOf(svg) {
  const said = new DOMParser().parseFromString(svg, "image/svg+xml").querySelector("desc")?.textContent || "";
  const [heads, ...rows] = said.split("\n").map((line) => line.split(" | "));
  return table("", heads.map((head, column) => [head, column === heads.length - 1 ? "number" : undefined]), rows);
}
