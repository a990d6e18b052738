// Several studies at once: files are sorted into studies by their names, and each study has a row with its progress.

import { get, newKey, upload } from "./api.js";
import { byId, el } from "./dom.js";
import { answerCell, probabilityCell, stateCell } from "./rows.js";
import { options } from "./submit.js";
import { t } from "./texts.js";

const named = /^(?:(.*?)[._\- ]+)?(ncct|cta|vessels|tmax|cbf|cbv|mtt|ctp|clinical)$/i;
const pseudonym = /^[A-Za-z0-9._-]{1,64}$/;
const pollEvery = 2000;
const tries = 20;
let studies = [];
let busy = false;

/** The study and the input of a file. @returns `{ study, subject, input }`, or null if the name ends with no input */
function placeOf(file) {
  const [name, ...folders] = (file.webkitRelativePath || file.name).split("/").reverse();
  const document = /\.json$/i.test(name);
  if (!document && !/\.nii(\.gz)?$/i.test(name)) return null;
  const match = named.exec(name.replace(/\.(json|nii(\.gz)?)$/i, ""));
  const input = match?.[2].toLowerCase();
  if (!match || (input === "clinical") !== document) return null;
  // A folder below the chosen one is a study; else the text before the input tells the studies apart.
  if (folders.length > 1) return { study: folders.join("/"), subject: folders[0], input };
  const subject = match[1] || folders[0] || "";
  return { study: subject, subject, input };
}

/** Sort files into studies. @returns `{ studies: [{ subject, files, faults }], others: [name] }` */
export function sorted(files) {
  const found = new Map();
  const others = [];
  for (const file of files) {
    const place = placeOf(file);
    if (!place) {
      others.push(file.name);
      continue;
    }
    const study = found.get(place.study) || { subject: place.subject, files: {}, faults: [] };
    found.set(place.study, study);
    if (study.files[place.input]) study.faults.push(t("Two files for {input}.", { input: place.input }));
    study.files[place.input] = file;
  }
  for (const study of found.values()) {
    if (study.subject && !pseudonym.test(study.subject)) {
      study.faults.push(t("The name is no pseudonym: use letters, digits, point, hyphen and underscore."));
    }
    if (!study.files.ncct && !study.files.cta) study.faults.push(t("It has neither an NCCT nor a CTA."));
  }
  const order = (a, b) => a.subject.localeCompare(b.subject, "en", { numeric: true });
  return { studies: [...found.values()].sort(order), others };
}

const stateOf = ({ faults, sending, problem, prediction }) => {
  if (prediction) return stateCell(prediction);
  if (sending !== undefined) {
    const share = Math.round(100 * sending);
    return el("td", {}, el("span", {}, sending < 1 ? t("Uploading … {share} %", { share }) : t("Checking …")),
      el("progress", { max: 1, value: sending, "aria-label": t("Upload") }));
  }
  return el("td", {}, t(faults.length || problem ? "not sent" : "ready to send"));
};

const reasonOf = ({ faults, problem, waiting, prediction }) => {
  if (prediction) return answerCell(prediction);
  if (waiting) return el("td", {}, t("The service is busy. It is sent again in {seconds} s.", { seconds: waiting }));
  const details = (problem?.errors || []).map(({ field, detail }) => `${field}: ${detail}`);
  return el("td", { class: "fault" }, [...faults, ...(problem ? [`${problem.title}: ${problem.message}`, ...details] : [])].join(" "));
};

function draw() {
  byId("batch-table").hidden = !studies.length;
  byId("batch-rows").replaceChildren(...studies.map((study) => {
    const { subject, files, prediction } = study;
    const name = subject || "–";
    return el("tr", {},
      el("td", {}, prediction ? el("a", { href: `/predictions/${encodeURIComponent(prediction.id)}` }, name) : name),
      el("td", {}, Object.keys(files).join(", ")),
      stateOf(study), probabilityCell(prediction || {}), reasonOf(study));
  }));
  const waiting = studies.filter(({ faults, prediction }) => !faults.length && !prediction).length;
  byId("batch-send").disabled = busy || !waiting;
  byId("batch-send").textContent = waiting === 1 ? t("Predict one study") : waiting ? t("Predict {count} studies", { count: waiting }) : t("Predict");
  const sent = studies.filter(({ prediction }) => prediction);
  const done = sent.filter(({ prediction }) => prediction.finished).length;
  byId("batch-said").textContent = sent.length ? t("Finished: {done} of {all}.", { done, all: sent.length }) : "";
}

/** The form of one study, with the options of the request as they are chosen in the form above. */
async function formOf({ subject, files }) {
  const form = new FormData();
  for (const [input, file] of Object.entries(files)) {
    if (input === "clinical") form.append(input, await file.text());
    else form.append(input, file);
  }
  if (subject) form.append("subject", subject);
  for (const [name, value] of Object.entries(options())) form.append(name, value);
  return form;
}

/** Send one study; a busy service is asked again, with the same key, so that no study is taken twice. */
async function sendOne(study) {
  study.key ||= newKey();
  study.problem = null;
  for (let attempt = 1; ; attempt++) {
    try {
      const said = { "Priority": "u=5", "Idempotency-Key": study.key }; // acute studies go first
      study.prediction = await upload("/v1/predictions", await formOf(study), (share) => {
        study.sending = share;
        draw();
      }, said);
      return;
    } catch (problem) {
      study.sending = undefined;
      if (attempt === tries || ![429, 503].includes(problem.status)) {
        study.problem = problem;
        if (problem.status && problem.status < 500) study.key = null; // a corrected study is another request
        return;
      }
      study.waiting = problem.retryAfter || 5;
      draw();
      await new Promise((resolve) => setTimeout(resolve, 1000 * study.waiting));
      study.waiting = 0;
    } finally {
      study.sending = undefined;
      draw();
    }
  }
}

async function sendAll() {
  busy = true;
  draw();
  for (const study of studies.filter(({ faults, prediction }) => !faults.length && !prediction)) await sendOne(study);
  busy = false;
  draw();
}

async function poll() {
  for (const study of studies.filter(({ prediction }) => prediction && !prediction.finished)) {
    study.prediction = await get(`/v1/predictions/${encodeURIComponent(study.prediction.id)}`).catch(() => study.prediction);
    draw();
  }
  setTimeout(poll, pollEvery);
}

function choose(event) {
  const found = sorted(event.target.files);
  studies = found.studies;
  byId("batch-others").textContent = found.others.length
    ? t("Not used, because the name does not end with an input: {list}", { list: found.others.join(", ") }) : "";
  draw();
}

/** Let the reader choose files; later calls do nothing. */
export function buildBatch() {
  if (byId("batch-send").onclick) return;
  for (const id of ["batch-folder", "batch-files"]) byId(id).onchange = choose;
  byId("batch-send").onclick = sendAll;
  window.addEventListener("beforeunload", (event) => busy && event.preventDefault());
  draw();
  poll();
}
