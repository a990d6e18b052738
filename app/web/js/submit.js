// Submission form: file inputs, clinical fields built from the JSON Schema of the service, and the resulting document.

import { get, upload } from "./api.js";
import { byId, el, words } from "./dom.js";
import { showProblem } from "./problem.js";

const volumes = {
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

const within = (name, members) => members.some((member) => (member.endsWith(".") ? name.startsWith(member) : name === member));

/** Return the schema of one field without its null branch and with its reference resolved. */
function resolve(schema, field) {
  const branches = (field.anyOf || [field]).filter((branch) => branch.type !== "null");
  const branch = branches[0].$ref ? schema.$defs[branches[0].$ref.split("/").pop()] : branches[0];
  return { ...branch, title: field.description || branch.title, unit: field.unit };
}

/** Return every leaf of the schema as [dotted name, field]. */
function leaves(schema, properties, prefix = "") {
  return Object.entries(properties).flatMap(([name, raw]) => {
    const field = resolve(schema, raw);
    return field.properties ? leaves(schema, field.properties, `${name}.`) : [[prefix + name, field]];
  });
}

function input(name, field) {
  const label = `${words(name)}${field.unit && field.unit !== "1" ? ` (${field.unit})` : ""}`;
  const options = field.enum || (field.type === "boolean" ? ["true", "false"] : null);
  const control = options
    ? el("select", { "data-name": name }, el("option", { value: "" }, "unknown"),
        ...options.map((option) => el("option", { value: option }, { true: "yes", false: "no" }[option] || option)))
    : el("input", {
        "data-name": name, type: field.type === "string" ? "text" : "number", min: field.minimum, max: field.maximum,
        step: field.type === "integer" ? 1 : "any",
      });
  control.dataset.type = field.type === "boolean" ? "boolean" : field.enum ? "string" : field.type;
  return el("label", { title: field.title }, el("span", {}, label), control);
}

/** Assign every field to the first section that names it, or to the last section. */
function fieldsets(fields) {
  const others = fields.filter(([name]) => !Object.values(parts).some((members) => within(name, members)));
  const place = (members) => members.flatMap((member) => fields.filter(([name]) => within(name, [member])));
  const sets = [...Object.entries(parts).map(([title, members]) => [title, place(members)]), ["Other", others]];
  return sets.filter(([, held]) => held.length).map(([title, held]) =>
    el("fieldset", {}, el("legend", {}, title),
      el("div", { class: "grid" }, ...held.map(([name, field]) => input(name, field)))));
}

function collect() {
  const record = {};
  for (const control of byId("clinical").querySelectorAll("[data-name]")) {
    if (control.value === "") continue;
    const [name, section] = control.dataset.name.split(".").reverse();
    const holder = section ? (record[section] ||= {}) : record;
    holder[name] = { boolean: (v) => v === "true", string: (v) => v }[control.dataset.type]?.(control.value)
      ?? Number(control.value);
  }
  return record;
}

/** Copy the edited JSON into the fields, if it is valid. */
function spread(text) {
  let record;
  try { record = JSON.parse(text); } catch { return; }
  for (const control of byId("clinical").querySelectorAll("[data-name]")) {
    const value = control.dataset.name.split(".").reduce((part, name) => part?.[name], record);
    control.value = value === undefined || value === null ? "" : String(value);
  }
}

async function send(event) {
  event.preventDefault();
  const form = new FormData();
  for (const picker of byId("volumes").querySelectorAll("input")) {
    if (picker.files.length) form.append(picker.name, picker.files[0]);
  }
  form.append("clinical", byId("json").value);
  for (const name of ["subject", "model", "explain", "ctp_interval_s"]) {
    const value = event.target.elements[name].value;
    if (value) form.append(name, value);
  }
  if (event.target.elements.accept_warnings.checked) form.append("accept_warnings", "true");
  const button = event.target.querySelector("button[type=submit]");
  button.disabled = true;
  byId("upload").hidden = false;
  byId("submit-problem").replaceChildren();
  try {
    const prediction = await upload("/v1/predictions", form, (share) => {
      byId("bar").value = share;
      byId("upload-text").textContent = share < 1 ? `Uploading … ${Math.round(100 * share)} %` : "Checking …";
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
    const [schema, models] = await Promise.all([get("/v1/schema/clinical"), get("/v1/models")]);
    byId("volumes").replaceChildren(...Object.entries(volumes).map(([name, label]) =>
      el("label", {}, el("span", {}, label), el("input", { type: "file", name, accept: ".nii,.gz,.nii.gz" }))));
    byId("clinical").replaceChildren(...fieldsets(leaves(schema, schema.properties)));
    for (const model of models.items || models) {
      for (const version of model.versions) {
        byId("model").append(el("option", {}, `${version.name}@${version.version}`));
      }
    }
    const written = () => { byId("json").value = JSON.stringify(collect(), null, 2); };
    byId("clinical").oninput = written;
    byId("clinical").onchange = written; // what fills in forms may send this event only
    byId("json").oninput = () => spread(byId("json").value);
    byId("submit").onsubmit = send;
  } catch (problem) {
    showProblem(byId("submit-problem"), problem, buildForm);
  }
}
