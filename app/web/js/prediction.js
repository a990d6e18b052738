// One prediction: waits for it, then shows the result, its reasons and the images they came from.

import { get } from "./api.js";
import { byId, el, percent, shown, signed, words } from "./dom.js";
import { showProblem } from "./problem.js";
import { showViewer } from "./viewer.js";
import { waterfall } from "./waterfall.js";

const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/v1/predictions/${encodeURIComponent(id)}`;

const table = (caption, heads, rows) =>
  el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map(([text, kind]) => el("th", { class: kind, scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((cells) =>
      el("tr", {}, ...cells.map((cell, column) => el("td", { class: heads[column][1] }, cell))))));

/** The probability, its interval and the threshold on one line from 0 to 1. */
function scale({ probability, interval, decision }) {
  const x = (value) => 20 + 560 * value;
  const tick = (value) => el("svg:text", { x: x(value), y: 50, "text-anchor": "middle", "font-size": 12, fill: "#5b6b7b" },
    percent(value));
  return el("svg:svg", { viewBox: "0 0 600 56", class: "scale", role: "img",
    "aria-label": `Probability ${percent(probability)}, threshold ${percent(decision.threshold)}` },
  el("svg:line", { x1: x(0), x2: x(1), y1: 22, y2: 22, stroke: "#d5dde5", "stroke-width": 6, "stroke-linecap": "round" }),
  el("svg:line", { x1: x(interval.low), x2: x(interval.high), y1: 22, y2: 22, stroke: "#9bb8cc", "stroke-width": 10 }),
  el("svg:line", { x1: x(decision.threshold), x2: x(decision.threshold), y1: 6, y2: 38, stroke: "#1b2733", "stroke-dasharray": "3 3" }),
  el("svg:circle", { cx: x(probability), cy: 22, r: 8, fill: decision.refractory ? "#d55e00" : "#0072b2" }),
  tick(0), tick(0.5), tick(1));
}

function result(prediction) {
  const { probability, interval, decision, folds } = prediction;
  const sets = { "refractory": "refractory", "not-refractory": "not refractory" };
  const conformal = decision.conformal
    && (decision.conformal.length === 1 ? sets[decision.conformal[0]] || decision.conformal[0] : "uncertain: neither class can be excluded");
  byId("result").replaceChildren(
    el("div", { class: "probability" }, percent(probability)),
    el("p", {}, "probability of a refractory occlusion (final stenosis > 50 %, eTICI 0–2a, or rescue treatment); ",
      `${percent(interval.level)} interval ${percent(interval.low)} to ${percent(interval.high)}.`),
    scale(prediction),
    el("p", {}, el("strong", {}, decision.refractory ? "Above" : "Below"),
      ` the version's threshold of ${percent(decision.threshold)} (${decision.rule}).`),
    conformal ? el("p", {}, `Conformal answer: ${conformal}.`) : null,
    el("p", { class: "quiet" }, `Folds: ${folds.map(percent).join(", ")}.`));
}

function reasons({ attribution, probability }) {
  if (!attribution) {
    byId("reasons").replaceChildren(el("p", { class: "quiet" }, "No explanation was asked for."));
    return;
  }
  const items = [
    ...attribution.clinical.map((item) => ({
      name: words(item.variable), shown: item.imputed ? "unknown, imputed" : shown(item.value), contribution: item.contribution,
    })),
    ...attribution.imaging.map((item) => ({ name: `image: ${item.modality}`, shown: "", contribution: item.contribution })),
  ].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  const regions = [...attribution.regions].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution)).slice(0, 8);
  byId("reasons").replaceChildren(
    el("p", {}, `Contributions to the log-odds. From ${signed(attribution.base)} for the average training patient they add up to `,
      `${signed(attribution.total)}, which is ${percent(probability)}.`),
    waterfall(attribution.base, attribution.total, items),
    el("details", {}, el("summary", {}, "As a table"),
      table("Every contribution", [["Variable"], ["Value"], ["Log-odds", "number"]],
        items.map((item) => [item.name, item.shown, signed(item.contribution)]))),
    regions.length ? table("Regions behind the image contributions", [["Region"], ["Image"], ["Log-odds", "number"]],
      regions.map((item) => [item.region, item.modality, signed(item.contribution)])) : null);
}

const units = (name) => (name.endsWith("_ml") ? " mL" : "");

function facts(prediction) {
  const perfusion = Object.entries(prediction.perfusion || {}).filter(([, value]) => value !== null);
  byId("perfusion").replaceChildren(perfusion.length
    ? table("From the maps, or the site's own numbers", [["Measure"], ["Value", "number"]],
        perfusion.map(([name, value]) => [words(name), `${value.toFixed(units(name) ? 0 : 2)}${units(name)}`]))
    : el("p", { class: "quiet" }, "No perfusion was given."));
  const seconds = Object.entries(prediction.timings).map(([stage, time]) => `${stage} ${time.toFixed(2)} s`).join(", ");
  byId("record").replaceChildren(
    table(`Prediction ${prediction.id}`, [["What"], ["Recorded"]], [
      ["Model", el("a", { href: `/v1/models/${prediction.model.name}/versions/${prediction.model.version}/card` },
        `${prediction.model.name}@${prediction.model.version}`)],
      ["Weights", el("code", {}, prediction.model.digest.slice(0, 19) + "…")],
      ["Finished", prediction.finished ? new Date(prediction.finished).toLocaleString() : "–"],
      ["Stages", seconds],
      ...Object.entries(prediction.inputs).map(([name, input]) =>
        [name, `${input.shape.join(" × ")}, ${input.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm`]),
    ]));
  byId("flags").replaceChildren(...(prediction.flags.length
    ? prediction.flags.map((flag) => el("li", {}, flag.detail))
    : [el("li", { class: "quiet" }, "Nothing was guessed, imputed or poor.")]));
}

function show(prediction) {
  byId("title").textContent = prediction.subject ? `Subject ${prediction.subject}` : "One prediction";
  byId("state").textContent = prediction.status;
  byId("state").className = `state ${prediction.status}`;
  const going = ["queued", "running"].includes(prediction.status);
  byId("running").hidden = !going;
  byId("bar").value = prediction.progress;
  byId("stage").textContent = prediction.status === "queued" ? "Waiting for a worker …" : `Working: ${prediction.stage} …`;
  byId("answer").hidden = prediction.status !== "succeeded";
  if (prediction.status === "succeeded") {
    result(prediction);
    reasons(prediction);
    facts(prediction);
    showViewer(path, prediction.attribution?.maps || []);
  } else if (prediction.status === "failed") {
    showProblem(byId("problem"), { title: prediction.error.title, message: prediction.error.detail });
  }
  return going;
}

async function follow() {
  try {
    let going = show(await get(path));
    while (going) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      going = show(await get(path));
    }
    byId("problem").hidden = false;
  } catch (problem) {
    showProblem(byId("problem"), problem, follow);
  }
}

follow();
