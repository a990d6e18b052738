// Render a model card (Markdown) as DOM elements: headings, paragraphs, lists and tables. It never parses HTML.

import { el } from "./dom.js";

/** Render `**bold**` and `` `code` `` within a line. */
function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).filter(Boolean).map((part) => {
    if (part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
    if (part.startsWith("`")) return el("code", {}, part.slice(1, -1));
    return part;
  });
}

const cells = (line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function block(lines) {
  const [first] = lines;
  const heading = /^(#{1,4}) (.*)/.exec(first);
  if (heading) return el(`h${Math.min(heading[1].length + 2, 5)}`, {}, ...inline(heading[2]));
  if (first.startsWith("|")) {
    const [heads, , ...rows] = lines;
    return el("table", {},
      el("thead", {}, el("tr", {}, ...cells(heads).map((cell) => el("th", { scope: "col" }, ...inline(cell))))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row).map((cell) => el("td", {}, ...inline(cell)))))));
  }
  if (/^[-*] /.test(first)) return el("ul", {}, ...lines.map((line) => el("li", {}, ...inline(line.replace(/^[-*] /, "")))));
  return el("p", {}, ...inline(lines.join(" ")));
}

/** Return the elements of the card, in order. */
export function card(markdown) {
  const blocks = markdown.split(/\n\s*\n/).flatMap((part) => {
    const lines = part.split("\n").filter((line) => line.trim());
    return /^#{1,4} /.test(lines[0] || "") && lines.length > 1 ? [[lines[0]], lines.slice(1)] : [lines];
  });
  return blocks.filter((lines) => lines.length).map(block);
}
