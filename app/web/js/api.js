// Calls to the service: one fetch function and one error class. Each call has the key or token of the reader.

import { credential, fresh, keep } from "./session.js";

/** The error of a call, made from the problem document of the service. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `The service returned status ${status}`);
    this.status = status;
    this.code = document.code;
    this.title = document.title || "Error";
    this.errors = document.errors || [];
    this.retryAfter = 0; // seconds
  }
}

export function headers() {
  const key = credential();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  let answer;
  await fresh();
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new Problem({ title: "No response", detail: "The service cannot be reached. Check that it runs." }, 0);
  }
  if (answer.ok) return answer;
  throw new Problem(await answer.json().catch(() => ({})), answer.status);
}

export const get = async (path) => (await ask(path, { headers: { Accept: "application/json" } })).json();

export const bytes = async (path) => (await ask(path)).arrayBuffer();

export const text = async (path) => (await ask(path)).text();

/** Read a document and its entity tag; both are null if it does not exist yet. */
export async function tagged(path) {
  try {
    const answer = await ask(path, { headers: { Accept: "application/json" } });
    return [await answer.json(), answer.headers.get("ETag")];
  } catch (problem) {
    if (problem.status === 404) return [null, null];
    throw problem;
  }
}

/** Send a JSON document; return the document of the response and its entity tag. */
export async function send(method, path, document, more = {}) {
  const options = { method, headers: { "Content-Type": "application/json", ...more }, body: JSON.stringify(document) };
  const answer = await ask(path, options);
  return [await answer.json(), answer.headers.get("ETag")];
}

/** Path of a figure or of the report, which may be drawn only now: the service waits for it, up to its own limit. */
export const whenDrawn = (path) => `${path}?wait=60`;

/** Load an image with the API key; a plain `src` cannot send the key. */
export async function picture(image, path) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  image.onload = () => URL.revokeObjectURL(url);
  image.src = url;
}

/** Save a file with the API key; a plain link cannot send the key. */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** Send a form and report upload progress (fetch has none); return the new prediction. */
export async function upload(path, form, onProgress, more = {}) {
  await fresh();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    const own = { "Prefer": "respond-async", "Idempotency-Key": newKey(), ...more };
    for (const [name, value] of Object.entries(own)) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status < 300) return resolve(request.response);
      const problem = new Problem(request.response || {}, request.status);
      problem.retryAfter = Number(request.getResponseHeader("Retry-After")) || 0;
      return reject(problem);
    };
    request.onerror = () => reject(new Problem({ title: "No response", detail: "The upload was interrupted. Send the study again." }, 0));
    request.send(form);
  });
}

/** A new Idempotency-Key; `randomUUID` exists on https:// and this machine only. */
export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Show the API key field; call `retry` when a key was entered. */
export function askForKey(retry) {
  const field = document.querySelector(".key");
  const input = field.querySelector("input");
  field.hidden = false;
  input.onchange = () => {
    keep(input.value.trim());
    document.dispatchEvent(new Event("rlvo-credential"));
    retry();
  };
}
