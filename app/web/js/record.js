// Record of a prediction: data of the run, files to download, and the model card.

import { save, text, whenDrawn } from "./api.js";
import { card } from "./card.js";
import { byId, el, timeOf } from "./dom.js";
import { channelName } from "./explanation.js";
import { showProblem } from "./problem.js";
import { table } from "./table.js";
import { t } from "./texts.js";

/** Create a button that saves a file of this prediction; it says that it waits, because a figure may be drawn only now. */
function file(path, id, name, saved = name.split("/").pop(), address = `${path}/${name}`) {
  const button = el("button", { type: "button", class: "plain small" }, name);
  const place = byId("files-problem");
  button.onclick = async () => {
    place.replaceChildren(el("p", { class: "quiet" }, t("Waiting for {name} …", { name })));
    await save(address, `${id}-${saved}`).then(() => place.replaceChildren(), (problem) => showProblem(place, problem));
  };
  return button;
}

/** What became of the delivery to one DICOM destination. */
function delivery({ state, tries, reason, changed, commitment, commitment_reason: why }) {
  const kept = { asked: t("the archive has not confirmed its storage yet"), committed: t("the archive confirms its storage"),
    refused: t("the archive does not confirm its storage: {why}", { why: why || "" }),
    unanswered: t("the archive did not answer whether it is stored") }[commitment];
  if (state === "delivered") return [t("delivered, {time}", { time: timeOf(changed) }), kept].filter(Boolean).join("; ");
  if (state === "given-up") return t("given up after {tries} tries: {reason}", { tries, reason: reason || "" });
  return tries ? t("tried again: {reason}, {tries} tries so far", { tries, reason: reason || "" }) : t("is being sent");
}

export function showRecord(path, prediction) {
  const { id, model, attribution } = prediction;
  const seconds = Object.entries(prediction.timings).map(([stage, time]) => `${stage} ${time.toFixed(2)} s`).join(", ");
  byId("record").replaceChildren(
    table(t("Prediction {id}", { id }), [["What"], ["Recorded"]], [
      [t("Model"), `${model.name}@${model.version}`],
      [t("Weights"), el("code", {}, `${model.digest.slice(0, 19)}…`)],
      [t("Finished"), prediction.finished ? timeOf(prediction.finished) : "–"],
      [t("Stages"), seconds],
      ...(prediction.deliveries || []).map((each) => [t("Sent to {name}", { name: each.destination }), delivery(each)]),
      ...Object.entries(prediction.inputs).map(([name, input]) =>
        [channelName(name), `${input.shape.join(" × ")}, ${input.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm`]),
    ]));
  const drawn = attribution
    ? ["report.html", "figures/waterfall.png", ...attribution.imaging.map((part) => `figures/overlay-${part.modality}.png`)]
    : [];
  const volumes = [...Object.keys(prediction.inputs).map((name) => `inputs/${name}.nii`),
    ...(attribution?.maps || []).map((name) => `maps/${name}.nii.gz`)];
  byId("files").replaceChildren(
    el("p", { class: "files" }, prediction.sealed ? null : file(path, id, "fhir"),
      prediction.series && !prediction.sealed ? file(path, id, "dicom", "dicom.zip", whenDrawn(`${path}/dicom`)) : null,
      ...drawn.map((name) => file(path, id, name, name.split("/").pop(), whenDrawn(`${path}/${name}`)))),
    el("details", {}, el("summary", {}, t("{count} volumes (NIfTI)", { count: volumes.length })),
      el("p", { class: "files" }, ...volumes.map((name) => file(path, id, name)))));
}

/** Load the card when its panel is opened. */
export function offerCard({ name, version }) {
  byId("card-panel").addEventListener("toggle", async () => {
    if (byId("card").childElementCount) return;
    try {
      const markdown = await text(`/v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/card`);
      byId("card").replaceChildren(...card(markdown));
    } catch (problem) {
      showProblem(byId("card"), problem);
    }
  });
}
