// Explanation: contributions as a sentence, a waterfall and tables; figures drawn by the service.

import { get, picture, text } from "./api.js";
import { byId, el, percent, shown, signed, words } from "./dom.js";
import { table, tableOf } from "./table.js";
import { waterfall } from "./waterfall.js";

const inWords = 3;

function contributions({ clinical, imaging }, units) {
  const value = (item) => {
    const said = shown(item.value);
    const unit = typeof item.value === "number" && units[item.variable];
    return unit ? `${said} ${unit}` : said;
  };
  return [
    ...clinical.map((item) => ({
      name: words(item.variable), shown: item.imputed ? "unknown, imputed" : value(item), contribution: item.contribution,
    })),
    ...imaging.map((item) => ({ name: `image: ${item.modality}`, shown: "", contribution: item.contribution })),
  ].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
}

/** “Raised most by NIHSS 19 (+0.41) and image: cta (+0.30).” */
function sentence(verb, items) {
  if (!items.length) return `Nothing ${verb.toLowerCase()} it.`;
  const named = items.slice(0, inWords).map((item) => `${item.name} ${item.shown}`.trim() + ` (${signed(item.contribution)})`);
  return `${verb} most by ${[named.slice(0, -1).join(", "), named.at(-1)].filter(Boolean).join(" and ")}.`;
}

function method({ method: how, error }) {
  const images = how === "exact"
    ? "Image part: all subsets of the modalities, and integrated gradients."
    : "Image part: fast method. Send explain=exact for the exact method, which is slower.";
  return `Shapley values of the calibrated log-odds. ${images}`
    + (error ? ` The clinical contributions are sampled; their standard error is at most ${error.toFixed(3)}.` : "");
}

/** Return the units of all variables that have one. */
async function unitsOf({ name, version }) {
  try {
    const schema = await get(`/v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/clinical-schema`);
    return Object.fromEntries(Object.entries(schema.properties)
      .filter(([, field]) => field.unit && field.unit !== "1").map(([key, field]) => [key, field.unit]));
  } catch {
    return {}; // show values without units rather than no explanation
  }
}

export async function showReasons({ attribution, probability, model }) {
  if (!attribution) {
    byId("reasons").replaceChildren(el("p", { class: "quiet" }, "This prediction was requested without an explanation."));
    return;
  }
  const items = contributions(attribution, await unitsOf(model));
  const regions = [...attribution.regions].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution)).slice(0, 10);
  byId("reasons").replaceChildren(
    el("p", {}, `The base is ${signed(attribution.base)} log-odds, the average training patient. With all contributions it becomes `,
      `${signed(attribution.total)}, which is ${percent(probability)}. `,
      sentence("Raised", items.filter((item) => item.contribution > 0)), " ",
      sentence("Lowered", items.filter((item) => item.contribution < 0))),
    waterfall(attribution.base, attribution.total, items),
    el("details", {}, el("summary", {}, "As a table"),
      table("All contributions", [["Variable"], ["Value"], ["Log-odds", "number"]],
        items.map((item) => [item.name, item.shown, signed(item.contribution)]))),
    el("p", { class: "quiet" }, method(attribution)));
  byId("regions-panel").hidden = !regions.length;
  byId("regions").replaceChildren(
    attribution.affected ? el("p", {}, `The occlusion is on the ${attribution.affected}.`) : "",
    table("Regions with the largest contributions (MNI grid)", [["Region"], ["Side"], ["Image"], ["Log-odds", "number"]],
      regions.map((item) => [item.region === "other" ? "outside the named regions" : item.region, item.side || "–",
        item.modality, signed(item.contribution)])));
}

/** Show figures drawn by the service, each with its table. `names` maps the id of an element to the name of a figure. */
export async function showFigures(path, names) {
  for (const [id, name] of Object.entries(names)) {
    const place = byId(id);
    const image = el("img", { alt: "", class: "figure" });
    try {
      const svg = await text(`${path}/figures/${name}.svg`);
      image.alt = new DOMParser().parseFromString(svg, "image/svg+xml").querySelector("title").textContent;
      await picture(image, `${path}/figures/${name}.svg`);
      place.replaceChildren(image, el("details", {}, el("summary", {}, "As a table"), tableOf(svg)));
    } catch {
      place.replaceChildren(el("p", { class: "quiet" }, "This figure is not available."));
    }
  }
}
