// Waterfall chart of the contributions from base to total, largest first; small ones are combined.
// A narrow page shows a second drawing of it, whose names stand above their bars; the style sheet hides one of the two.

import { el, shortened } from "./dom.js";
import { percentOf, pointsText, signed } from "./explanation.js";
import { t } from "./texts.js";

const wide = { rowHeight: 24, left: 262, width: 872, right: 150, drop: 0, letters: 36 }; // the longest name is bold
const narrow = { rowHeight: 40, left: 4, width: 340, right: 140, drop: 16, letters: 44 };
const most = 12;

/** @param items [{name, shown, contribution}], sorted by size; @returns SVG figures with a text alternative. */
export const waterfall = (base, total, items) => el("div", {},
  drawn(base, total, items, wide, "waterfall"), drawn(base, total, items, narrow, "waterfall narrow"));

/** One drawing; `drop` is the distance from a name to its bar, and `letters` the longest name. */
function drawn(base, total, items, { rowHeight, left, width, right, drop, letters }, kind) {
  const rest = items.slice(most).reduce((sum, item) => sum + item.contribution, 0);
  const rows = items.length > most
    ? [...items.slice(0, most), { name: t("{count} smaller ones", { count: items.length - most }), shown: "", contribution: rest }]
    : items;
  const stops = [base];
  for (const row of rows) stops.push(stops.at(-1) + row.contribution);
  const low = Math.min(...stops, total) - 0.15;
  const high = Math.max(...stops, total) + 0.15;
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
  const height = (rows.length + 2) * rowHeight + 6;

  const text = (at, y, content, attributes = {}) =>
    el("svg:text", { x: at, y: y + 16, "font-size": 13, fill: "var(--ink)", ...attributes }, content);
  const anchor = (value, y, name) => el("svg:g", {}, text(0, y, name, { "font-weight": 600 }),
    el("svg:line", { x1: x(value), x2: x(value), y1: y + drop + 2, y2: y + drop + 22, stroke: "var(--ink)", "stroke-width": 3 }),
    text(x(value) + 8, y + drop, `${signed(value)} (${percentOf(value)})`));
  const bar = (row, index) => {
    const y = (index + 1) * rowHeight;
    const [from, to] = [stops[index], stops[index + 1]];
    const ends = [x(Math.min(from, to)), x(Math.max(from, to))];
    const name = row.shown ? `${row.name}: ${row.shown}` : row.name;
    return el("svg:g", {},
      el("svg:line", { x1: x(from), x2: x(from), y1: y - 4, y2: y + drop + 5, stroke: "var(--quiet)" }),
      text(0, y, shortened(name, letters), { stroke: "var(--paper)", "stroke-width": 4, "paint-order": "stroke" }),
      el("svg:rect", { x: ends[0], y: y + drop + 4, width: Math.max(1.5, ends[1] - ends[0]), height: 16, rx: 2,
        fill: row.contribution < 0 ? "var(--lowers)" : "var(--raises)" }),
      text(ends[1] + 6, y + drop, `${signed(row.contribution)} (${pointsText(total, row.contribution)})`));
  };
  return el("svg:svg", { viewBox: `0 0 ${width} ${height}`, class: kind, role: "img",
    "aria-label": t("Waterfall from {base} to {total} log-odds", { base: signed(base), total: signed(total) }) },
  anchor(base, 0, t("background patients without images")), ...rows.map(bar),
  anchor(total, (rows.length + 1) * rowHeight, t("this patient")));
}
