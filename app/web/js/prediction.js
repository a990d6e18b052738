// Page of one prediction: wait until it has finished, then show result, explanation and images.

import { showAnswer, showSealed } from "./answer.js";
import { get } from "./api.js";
import { byId, el, timeOf, words } from "./dom.js";
import { showFollowUp } from "./followup.js";
import { startSession } from "./login.js";
import { showProblem } from "./problem.js";
import { showReasons, showWhenDrawn } from "./reasons.js";
import { offerCard, showRecord } from "./record.js";
import { showScores } from "./scores.js";
import { table } from "./table.js";
import { t, translatePage } from "./texts.js";
import { showViewer } from "./viewer.js";

/** Stages and pauses in words. */
const stages = { prepare: "preparing the images", predict: "predicting", explain: "explaining", record: "storing" };
const stateNames = { "waiting-for-storage": "waiting for storage" };

const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/v1/predictions/${encodeURIComponent(id)}`;

async function answered(prediction) {
  const { attribution, perfusion, model, sealed } = prediction;
  if (sealed) {
    showSealed(prediction);
    showRecord(path, prediction);
    offerCard(model);
    await Promise.all([showViewer(path, prediction), showFollowUp(path, prediction)]);
    return;
  }
  showAnswer(prediction);
  showScores(prediction);
  showRecord(path, prediction);
  offerCard(model);
  const viewer = showViewer(path, prediction);
  await showReasons(prediction);
  const figures = {};
  const measured = perfusion && Object.values(perfusion).some((value) => value !== null);
  if (attribution && measured) figures.perfusion = "perfusion";
  else byId("perfusion").replaceChildren(measured ? perfusionTable(perfusion) : el("p", { class: "quiet" },
    t(perfusion ? "The perfusion maps give no usable numbers; the warnings say why." : "The study has no perfusion data.")));
  if (attribution) figures.position = "position";
  byId("position-panel").hidden = !attribution;
  await Promise.all([viewer, showWhenDrawn(path, prediction, figures), showFollowUp(path, prediction)]);
}

/** The numbers of a study without figures, because it was sent without an explanation. */
function perfusionTable(perfusion) {
  return table("", [["Measure"], ["Value", "number"]], Object.entries(perfusion).filter(([, value]) => value !== null)
    .map(([name, value]) => [words(name), name.endsWith("_ml") ? `${value.toFixed(0)} mL` : value.toFixed(2)]));
}

/** Why an accepted study makes no progress; the service tries again by itself. */
function pause({ detail, since }) {
  return `${detail}. ${t("Waiting since {time}; the service continues when this is over.", { time: timeOf(since) })}`;
}

function show(prediction) {
  const { status, subject, stage, progress, waiting, error } = prediction;
  const going = ["queued", "running"].includes(status);
  document.title = `rlvo: ${subject || t("one prediction")}`;
  byId("title").textContent = subject ? t("Subject {subject}", { subject }) : t("One prediction");
  byId("state").textContent = t(waiting ? stateNames[waiting.reason] || waiting.reason : status);
  byId("state").className = `state ${status}`;
  byId("running").hidden = !going;
  byId("bar").value = progress;
  byId("stage").textContent = waiting ? pause(waiting)
    : status === "queued" ? t("Waiting for a worker …") : t("Running: {stage} …", { stage: t(stages[stage] || stage || "started") });
  byId("answer").hidden = status !== "succeeded";
  byId("problem").replaceChildren();
  if (status === "failed") showProblem(byId("problem"), { title: t("Failed: {title}.", { title: error.title }), message: error.detail });
  if (status === "cancelled") showProblem(byId("problem"), { title: t("Cancelled."), message: t("This prediction has no result.") });
  return going;
}

async function follow() {
  try {
    let prediction = await get(path);
    while (show(prediction)) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      prediction = await get(path);
    }
    if (prediction.status === "succeeded") await answered(prediction);
    document.body.dataset.shown = prediction.status;
  } catch (problem) {
    byId("title").textContent = t(problem.status === 410 ? "Erased prediction" : "No prediction to show");
    byId("running").hidden = byId("answer").hidden = true;
    showProblem(byId("problem"), problem, follow);
    document.body.dataset.shown = "none";
  }
}

translatePage();
await startSession();
follow();
