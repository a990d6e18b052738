// Submission form: file inputs, clinical fields built from the JSON Schema of the service, and the resulting document.

import { get, upload } from "./api.js";
import { decimalField, quantity } from "./decimals.js";
import { byId, el, words } from "./dom.js";
import { showProblem } from "./problem.js";
import { t } from "./texts.js";

let controls = {}; // by the name of the field: {read, show, unit}
const versions = {}; // by name@version
let unread = new Set(); // fields and volumes that the chosen version does not read
let defaultModel = ""; // of a request that names none
let interval; // seconds between the frames of the CTP

const volumes = {
  study: "DICOM study (ZIP archive)",
  ncct: "Non-contrast CT", cta: "CT angiography", vessels: "Vessel mask", tmax: "Tmax map (s)",
  cbf: "CBF map", cbv: "CBV map", mtt: "MTT map (s)", ctp: "CT perfusion series (4-D)",
};

/** Sections of the form, in the order in which a stroke team learns the values. All other fields follow at the end. */
const parts = {
  "Patient and presentation": ["age", "sex", "nihss", "prestroke_mrs", "systolic_bp", "diastolic_bp", "onset_to_imaging",
    "onset_to_door", "wake_up", "ivt"],
  "History and medication": ["atrial_fibrillation", "hypertension", "diabetes", "dyslipidemia", "smoking", "coronary_disease",
    "heart_failure", "prior_stroke", "prior_tia", "antiplatelet", "anticoagulant", "statin"],
  "Occlusion and signs on the images": ["occlusion_side", "occlusion_site", "tandem_occlusion", "aspects", "imaging_signs."],
  "Laboratory": ["glucose", "glucose_mmol_l", "crp", "leukocytes", "inr", "platelets", "creatinine", "ldl", "hba1c", "hba1c_mmol_mol"],
  "Perfusion values of your software": ["perfusion."],
};

/** Section of the form for the own variables of a version, by the group that their declaration names. */
const ownParts = {
  presentation: "Patient and presentation", history: "History and medication",
  imaging: "Occlusion and signs on the images", laboratory: "Laboratory", other: "Other",
};
const isOwn = (name) => name.startsWith("own.");

const within = (name, members) => members.some((member) => (member.endsWith(".") ? name.startsWith(member) : name === member));

/** Return the schema of one field without its null branch and with its reference resolved. */
function resolve(schema, field) {
  const branches = (field.anyOf || [field]).filter((branch) => branch.type !== "null");
  const branch = branches[0].$ref ? schema.$defs[branches[0].$ref.split("/").pop()] : branches[0];
  return { ...branch, title: field.description || field.label || branch.title, unit: field.unit };
}

/** Return every leaf of the schema as [dotted name, field]. */
function leaves(schema, properties, prefix = "") {
  return Object.entries(properties).flatMap(([name, raw]) => {
    const field = resolve(schema, raw);
    if (field.type === "object" && !field.properties) return []; // own variables: the schema of a version lists them
    return field.properties ? leaves(schema, field.properties, `${name}.`) : [[prefix + name, field]];
  });
}

/** Create the control of one field, and its functions to read and to show a value. */
function input(name, field) {
  const label = `${field.label || t(words(name))}${field.unit && field.unit !== "1" ? ` (${field.unit})` : ""}`;
  const options = field.enum || (field.type === "boolean" ? ["true", "false"] : null);
  const numeric = !options && field.type !== "string";
  const control = options
    ? el("select", { "data-name": name }, el("option", { value: "" }, t("unknown")),
        ...options.map((option) => el("option", { value: option }, t({ true: "yes", false: "no" }[option] || option))))
    : el("input", { "data-name": name, type: "text", inputmode: numeric ? "decimal" : null, autocomplete: "off" });
  const row = el("label", { title: field.title, "data-field": name }, el("span", {}, label), control);
  if (numeric) {
    const limits = { minimum: field.minimum, maximum: field.maximum, integer: field.type === "integer", unit: field.unit };
    const { value, show } = decimalField(control, limits);
    controls[name] = { read: value, show, unit: field.unit, label: field.label };
  } else {
    const parse = field.type === "boolean" ? (text) => text === "true" : (text) => text;
    controls[name] = {
      label: field.label,
      read: () => (control.value === "" ? undefined : parse(control.value)),
      show: (value) => { control.value = value === undefined || value === null ? "" : String(value); },
    };
  }
  return row;
}

/** Assign every field to the first section that names it, or to the last section. */
function fieldsets(fields) {
  const others = fields.filter(([name]) => !Object.values(parts).some((members) => within(name, members)));
  const place = (members) => members.flatMap((member) => fields.filter(([name]) => within(name, [member])));
  const sets = [...Object.entries(parts).map(([title, members]) => [title, place(members)]), ["Other", others]];
  return sets.filter(([, held]) => held.length).map(([title, held]) =>
    el("fieldset", { "data-part": title }, el("legend", {}, t(title)),
      el("div", { class: "grid" }, ...held.map(([name, field]) => input(name, field)))));
}

/** Show the own variables of the chosen version, each in its section, instead of those of another version. */
function showOwn(fields) {
  const form = byId("clinical");
  for (const row of form.querySelectorAll('[data-field^="own."]')) row.remove();
  for (const empty of form.querySelectorAll(".grid:empty")) empty.parentElement.remove();
  for (const name of Object.keys(controls).filter(isOwn)) delete controls[name];
  for (const [name, field] of fields.filter(([each]) => isOwn(each))) {
    const title = ownParts[field.group] || "Other";
    if (!form.querySelector(`[data-part="${title}"]`)) {
      form.append(el("fieldset", { "data-part": title }, el("legend", {}, t(title)), el("div", { class: "grid" })));
    }
    form.querySelector(`[data-part="${title}"] .grid`).append(input(name, field));
  }
  spread();
}

/** The document of the fields; it keeps own values of another version, which have no field now. */
function collect() {
  const record = {};
  const { own } = written() || {};
  if (own && typeof own === "object") {
    const others = Object.entries(own).filter(([name]) => !controls[`own.${name}`]);
    if (others.length) record.own = Object.fromEntries(others);
  }
  for (const [dotted, { read }] of Object.entries(controls)) {
    const value = read();
    if (value === undefined) continue;
    const [name, section] = dotted.split(".").reverse();
    const holder = section ? (record[section] ||= {}) : record;
    holder[name] = value;
  }
  return record;
}

/** The document as it is sent, or null while the edited text is no JSON object. */
function written() {
  try {
    const record = JSON.parse(byId("json").value);
    return record && typeof record === "object" ? record : null;
  } catch {
    return null;
  }
}

/** Copy the edited JSON into the fields, if it is valid. */
function spread() {
  const record = written();
  if (!record) return;
  for (const [dotted, { show }] of Object.entries(controls)) {
    show(dotted.split(".").reduce((part, name) => (Object.hasOwn(part ?? {}, name) ? part[name] : undefined), record));
  }
}

/** List every value of the document with its unit, so that a wrong one is seen before it is sent. */
function review() {
  const record = written();
  const values = Object.entries(record || {}).flatMap(([name, value]) =>
    (value && typeof value === "object" ? Object.entries(value).map(([part, held]) => [`${name}.${part}`, held]) : [[name, value]]));
  const said = (name, value) => {
    if (typeof value === "number") return quantity(value, controls[name]?.unit);
    return typeof value === "boolean" ? t(value ? "yes" : "no") : String(value);
  };
  byId("review-values").replaceChildren(...(values.length ? [
    el("strong", {}, t("These values are sent:")),
    el("ul", {}, ...values.map(([name, value]) => el("li", {}, `${controls[name]?.label || t(words(name))}: ${said(name, value)}`,
      unread.has(name) || (isOwn(name) && !controls[name]) ? el("em", {}, ` · ${t("not read by this model")}`) : null))),
  ] : []));
}

/** Bring the fields that the chosen version reads to the top of their section, and mark the others. */
async function followModel() {
  const chosen = byId("model").value || defaultModel;
  if (!chosen) return;
  const [name, version] = chosen.split("@");
  const schema = await get(`/v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/clinical-schema`);
  const { required_inputs: needed = [], optional_inputs: optional = [] } = versions[chosen] || {};
  const fields = leaves(schema, schema.properties);
  showOwn(fields);
  const read = new Set(["study", ...fields.map(([field]) => field), ...needed, ...optional]);
  unread = new Set();
  for (const grid of [byId("volumes"), ...byId("clinical").querySelectorAll(".grid")]) {
    const rows = [...grid.children];
    for (const row of rows) {
      const skipped = !read.has(row.dataset.field);
      if (skipped) unread.add(row.dataset.field);
      row.classList.toggle("unread", skipped);
      row.firstElementChild.dataset.note = skipped ? ` · ${t("not read by this model")}`
        : needed.includes(row.dataset.field) ? ` · ${t("required")}` : "";
    }
    grid.append(...rows.filter((row) => !row.classList.contains("unread")), ...rows.filter((row) => row.classList.contains("unread")));
  }
  review();
}

/** The options of a request that the reader has chosen, by the name of their part. */
export function options() {
  const fields = byId("submit").elements;
  const chosen = { model: fields.model.value, explain: fields.explain.value };
  const seconds = interval.value();
  if (seconds !== undefined) chosen.ctp_interval_s = seconds;
  if (fields.accept_warnings.checked) chosen.accept_warnings = "true";
  return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== ""));
}

async function send(event) {
  event.preventDefault();
  const form = new FormData();
  for (const picker of byId("volumes").querySelectorAll("input")) {
    if (picker.files.length) form.append(picker.name, picker.files[0]);
  }
  form.append("clinical", byId("json").value);
  const subject = event.target.elements.subject.value;
  if (subject) form.append("subject", subject);
  for (const [name, value] of Object.entries(options())) form.append(name, value);
  const button = event.target.querySelector("button[type=submit]");
  button.disabled = true;
  byId("upload").hidden = false;
  byId("submit-problem").replaceChildren();
  try {
    const prediction = await upload("/v1/predictions", form, (share) => {
      byId("bar").value = share;
      byId("upload-text").textContent = share < 1 ? t("Uploading … {share} %", { share: Math.round(100 * share) }) : t("Checking …");
    });
    location.href = `/predictions/${encodeURIComponent(prediction.id)}`;
  } catch (problem) {
    showProblem(byId("submit-problem"), problem, () => {});
  } finally {
    button.disabled = false;
    byId("upload").hidden = true;
  }
}

/** Build the form once; later calls (after a key was entered) do nothing if it exists. */
export async function buildForm() {
  if (byId("volumes").childElementCount) return;
  try {
    controls = {};
    const [schema, models] = await Promise.all([get("/v1/schema/clinical"), get("/v1/models")]);
    byId("volumes").replaceChildren(...Object.entries(volumes).map(([name, label]) =>
      el("label", { "data-field": name }, el("span", {}, t(label)), el("input", { type: "file", name, accept: name === "study" ? ".zip" : ".nii,.gz,.nii.gz,.zip" }))));
    byId("clinical").replaceChildren(...fieldsets(leaves(schema, schema.properties)));
    for (const model of models) {
      for (const version of model.versions) {
        const text = `${version.name}@${version.version}`;
        versions[text] = version;
        byId("model").append(el("option", { value: text }, version.synthetic ? `${text} (${t("synthetic training")})` : text));
      }
    }
    const usual = models.flatMap((model) => model.versions).find((version) => version.default);
    if (usual) defaultModel = `${usual.name}@${usual.version}`;
    interval = decimalField(byId("submit").elements.ctp_interval_s, { minimum: 0.2, maximum: 6, unit: "s" });
    const typed = () => {
      byId("json").value = JSON.stringify(collect(), null, 2);
      review();
    };
    byId("clinical").oninput = typed;
    byId("clinical").onchange = typed; // what fills in forms may send this event only
    byId("json").oninput = () => {
      spread();
      review();
    };
    byId("model").onchange = () => followModel().catch(() => {}); // the order of the fields is a convenience
    byId("model").onchange();
    byId("submit").onsubmit = send;
  } catch (problem) {
    showProblem(byId("submit-problem"), problem, buildForm);
  }
}
