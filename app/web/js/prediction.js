// Page of one prediction: wait until it has finished, then show result, explanation and images.

import { showAnswer } from "./answer.js";
import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { showFollowUp } from "./followup.js";
import { showProblem } from "./problem.js";
import { showFigures, showReasons } from "./reasons.js";
import { offerCard, showRecord } from "./record.js";
import { showViewer } from "./viewer.js";

const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/v1/predictions/${encodeURIComponent(id)}`;

async function answered(prediction) {
  const { attribution, perfusion, model } = prediction;
  showAnswer(prediction);
  showRecord(path, prediction);
  offerCard(model);
  const viewer = showViewer(path, attribution);
  await showReasons(prediction);
  const figures = {};
  if (attribution && perfusion) figures.perfusion = "perfusion";
  else byId("perfusion").replaceChildren(el("p", { class: "quiet" }, "The study has no perfusion data."));
  if (attribution) figures.position = "position";
  byId("position-panel").hidden = !attribution;
  await Promise.all([viewer, showFigures(path, figures), showFollowUp(path, prediction)]);
}

/** Why an accepted study makes no progress; the service tries again by itself. */
function pause({ detail, since }) {
  return `${detail}. Waiting since ${new Date(since).toLocaleTimeString()}; the service continues when this is over.`;
}

function show(prediction) {
  const { status, subject, stage, progress, waiting, error } = prediction;
  const going = ["queued", "running"].includes(status);
  document.title = `rlvo: ${subject || "one prediction"}`;
  byId("title").textContent = subject ? `Subject ${subject}` : "One prediction";
  byId("state").textContent = waiting ? waiting.reason : status;
  byId("state").className = `state ${status}`;
  byId("running").hidden = !going;
  byId("bar").value = progress;
  byId("stage").textContent = waiting ? pause(waiting)
    : status === "queued" ? "Waiting for a worker …" : `Running: ${stage} …`;
  byId("answer").hidden = status !== "succeeded";
  byId("problem").replaceChildren();
  if (status === "failed") showProblem(byId("problem"), { title: error.title, message: error.detail });
  if (status === "cancelled") showProblem(byId("problem"), { title: "Cancelled.", message: "This prediction has no result." });
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
    showProblem(byId("problem"), problem, follow);
  }
}

follow();
