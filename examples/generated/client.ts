// Sends a CTA with the generated types, and reads the answer, the FHIR bundle and the CDS card.
//
// node client.js http://127.0.0.1:8000 KEY cta.nii.gz

import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Study = { cta: Blob; subject: string; explain: "true" | "false" };
type Problem = components["schemas"]["Problem"];

const [url, key, cta] = process.argv.slice(2);
const rlvo = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function form(study: Study): FormData {
  const data = new FormData();
  data.append("cta", study.cta, "cta.nii.gz");
  data.append("subject", study.subject);
  data.append("explain", study.explain);
  return data;
}

function stop(problem: Problem): never {
  console.error(`${problem.status} ${problem.code}: ${problem.detail}`);
  process.exit(1);
}

const study: Study = { cta: new Blob([await readFile(cta!)]), subject: "generated-1", explain: "false" };
const sent = await rlvo.POST("/v1/predictions", {
  params: { header: { "idempotency-key": "generated-typescript-1", prefer: "wait=120" } },
  body: study as never, // the document describes a file as a string; the form below sends the Blob
  bodySerializer: () => form(study),
});
if (sent.error) stop(sent.error);
const prediction = sent.data;
console.log(prediction.id, prediction.status, prediction.summary);

const path = { id: prediction.id };
const fhir = await rlvo.GET("/v1/predictions/{id}/fhir", { params: { path, query: { fhirVersion: "5.0" } } });
if (fhir.error) stop(fhir.error);
console.log("FHIR:", (fhir.data as { entry: unknown[] }).entry.length, "resources");

const view = await rlvo.POST("/cds-services/rlvo-patient-view", {
  body: {
    hook: "patient-view",
    hookInstance: "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
    context: { userId: "Practitioner/1", patientId: "generated-1" },
  },
});
if (view.error) stop(view.error);
console.log("card:", view.data.cards[0]?.summary);
