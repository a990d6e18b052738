// Explanation: contributions as a sentence, a waterfall and tables; figures drawn by the service.

import { get, picture, text } from "./api.js";
import { byId, el, shown, words } from "./dom.js";
import { channelName, grouped, outsideText, percent, points, pointsText, sideText, signed } from "./explanation.js";
import { scrolling, table, tableOf } from "./table.js";
import { t } from "./texts.js";
import { waterfall } from "./waterfall.js";

const inWords = 3;

function contributions({ clinical, imaging }, units) {
  const value = (item) => {
    const said = shown(item.value);
    const unit = typeof item.value === "number" && (item.unit || units[item.variable]);
    return unit ? `${said} ${unit}` : said;
  };
  return [
    ...clinical.map((item) => ({
      name: item.label || words(item.variable), shown: item.imputed ? t("not given") : value(item), contribution: item.contribution, known: !item.imputed,
    })),
    ...imaging.map((item) => ({ name: channelName(item.modality), shown: "", contribution: item.contribution, known: true })),
  ].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
}

/** “Raised most by NIHSS 19 (+0.41 log-odds, +8.1 points) and CTA (+0.30 log-odds, +5.9 points).” */
function sentence(raised, items, total) {
  if (!items.length) return raised ? t("No known value or image raised it.") : t("No known value or image lowered it.");
  const named = items.slice(0, inWords).map((item) => `${item.name} ${item.shown}`.trim()
    + ` (${signed(item.contribution)} log-odds, ${pointsText(total, item.contribution)})`);
  const list = [named.slice(0, -1).join(", "), named.at(-1)].filter(Boolean).join(t(" and "));
  return t(raised ? "Raised most by {list}." : "Lowered most by {list}.", { list });
}

function method({ method: how, error }) {
  const images = how === "exact"
    ? t("Image part: all subsets of the modalities, and integrated gradients.")
    : t("Image part: fast method. Send explain=exact for the exact method, which is slower.");
  return `${t("Shapley values of the calibrated log-odds.")} ${images}`
    + (error ? ` ${t("The clinical contributions are sampled; their standard error is at most {error}.", { error: error.toFixed(3) })}` : "");
}

/** Return the units of all variables that have one. */
async function unitsOf({ name, version }) {
  try {
    const schema = await get(`/v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/clinical-schema`);
    const own = Object.entries(schema.properties.own?.properties || {}).map(([key, field]) => [`own.${key}`, field]);
    return Object.fromEntries([...Object.entries(schema.properties), ...own]
      .filter(([, field]) => field.unit && field.unit !== "1").map(([key, field]) => [key, field.unit]));
  } catch {
    return {}; // show values without units rather than no explanation
  }
}

const logOdds = [["Points", "number"], ["Log-odds", "number"]];

/** The largest regions; an attribution without maps has none. */
function showRegions({ regions, affected, total }, flags) {
  const largest = [...regions].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution)).slice(0, 10);
  byId("regions-panel").hidden = !largest.length;
  byId("regions").replaceChildren(
    el("p", {}, sideText(affected, flags)),
    scrolling(t("Image regions"), table(t("Regions with the largest contributions (MNI grid)"), [["Region"], ["Side"], ["Image"], ...logOdds],
      largest.map((item) => [item.region === "other" ? t("outside the brain") : item.region, item.side ? t(item.side) : "–",
        channelName(item.modality), signed(points(total, item.contribution), 1), signed(item.contribution)]))));
}

export async function showReasons({ attribution, probability, model, flags }) {
  if (!attribution) {
    byId("reasons").replaceChildren(el("p", { class: "quiet" }, t("This prediction was requested without an explanation.")));
    return;
  }
  const items = contributions(attribution, await unitsOf(model));
  const known = items.filter((item) => item.known);
  const { base, total } = attribution;
  byId("reasons").replaceChildren(
    el("p", {}, ...[outsideText(attribution), " ",
      sentence(true, known.filter((item) => item.contribution > 0), total), " ",
      sentence(false, known.filter((item) => item.contribution < 0), total), " ",
      t("The base is {base} log-odds: background patients without images. With all contributions it becomes {total}, which is {probability}.",
        { base: signed(base), total: signed(total), probability: percent(probability) })]),
    scrolling(t("Contributions as a figure"), waterfall(base, total, grouped(items))),
    el("details", {}, el("summary", {}, t("As a table")),
      scrolling(t("All contributions"), table(t("All contributions"), [["Variable"], ["Value"], ...logOdds],
        items.map((item) => [item.name, item.shown, signed(points(total, item.contribution), 1), signed(item.contribution)])))),
    el("p", { class: "quiet" },
      t("Points compare the probability with and without one contribution; they do not add up. Log-odds do."), " ", method(attribution)));
  showRegions(attribution, flags);
}

const unfinished = {
  pending: "The figures are drawn now. The answer above is complete.",
  failed: "The figures could not be drawn; the service tries again. The answer above is not affected.",
};
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const change = { // waits for a change of the state; the service draws pending figures at the first request
  pending: (path, name) => text(`${path}/figures/${name}.svg?wait=20`).catch(() => pause(500)),
  failed: () => pause(10000),
};

/** Show figures when the service has drawn them. Return then, or at the first failure, which is said and followed. */
export async function showWhenDrawn(path, { figures }, names) {
  if (!(figures in unfinished)) return showFigures(path, names);
  for (const id of Object.keys(names)) byId(id).replaceChildren(el("p", { class: "quiet", role: "status" }, t(unfinished[figures])));
  const later = change[figures](path, Object.values(names)[0]).then(() => get(path))
    .then((prediction) => showWhenDrawn(path, prediction, names), (problem) => problem.status || showWhenDrawn(path, { figures }, names));
  return figures === "failed" || later;
}

const STYLES = /<style[^]*?<\/style>| style="[^"]*"/g; // of a figure; the page forbids them, and shows the PNG

/** Show figures drawn by the service, each with its table. `names` maps the id of an element to the name of a figure. */
async function showFigures(path, names) {
  for (const [id, name] of Object.entries(names)) {
    const place = byId(id);
    const image = el("img", { alt: "", class: "figure" });
    try {
      const svg = (await text(`${path}/figures/${name}.svg`)).replace(STYLES, "");
      const drawing = new DOMParser().parseFromString(svg, "image/svg+xml");
      image.alt = drawing.querySelector("title").textContent;
      image.width = Math.round((drawing.documentElement.viewBox.baseVal.width * 96) / 72); // points to pixels
      const numbers = tableOf(svg);
      if (!numbers.tBodies[0].rows.length) {
        place.replaceChildren(el("p", { class: "quiet" }, t("No number of the record is known, so there is nothing to compare.")));
        continue;
      }
      await picture(image, `${path}/figures/${name}.png`); // an SVG has styles, which the page forbids
      place.replaceChildren(image, el("details", {}, el("summary", {}, t("As a table")), scrolling(t("As a table"), numbers)));
    } catch {
      place.replaceChildren(el("p", { class: "quiet" }, t("This figure is not available.")));
    }
  }
}
