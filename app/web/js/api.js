// The service as this page sees it: one fetch, one error, one key kept for as long as the tab is open.

const stored = "rlvo-key";

/** What went wrong, as the service's problem document says it. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `The service answered ${status}`);
    this.status = status;
    this.code = document.code;
    this.title = document.title || "Something failed";
    this.errors = document.errors || [];
  }
}

export function headers() {
  const key = sessionStorage.getItem(stored);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new Problem({ title: "No answer", detail: "The service cannot be reached." }, 0);
  }
  if (answer.ok) return answer;
  throw new Problem(await answer.json().catch(() => ({})), answer.status);
}

export const get = async (path) => (await ask(path, { headers: { Accept: "application/json" } })).json();

export const text = async (path) => (await ask(path)).text();

/** A document and its entity tag; both null where there is none yet. */
export async function tagged(path) {
  try {
    const answer = await ask(path, { headers: { Accept: "application/json" } });
    return [await answer.json(), answer.headers.get("ETag")];
  } catch (problem) {
    if (problem.status === 404) return [null, null];
    throw problem;
  }
}

/** Sends a JSON document; answers the document that comes back, and its entity tag. */
export async function send(method, path, document, more = {}) {
  const options = { method, headers: { "Content-Type": "application/json", ...more }, body: JSON.stringify(document) };
  const answer = await ask(path, options);
  return [await answer.json(), answer.headers.get("ETag")];
}

/** Points an image at a file that may need the key: a plain `src` could not send it. */
export async function picture(image, path) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  image.onload = () => URL.revokeObjectURL(url);
  image.src = url;
}

/** Saves a file. A link would do, were it not for the key. */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** Sends a form with upload progress (fetch has none), and answers the prediction that it made. */
export function upload(path, form, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("Prefer", "respond-async");
    request.setRequestHeader("Idempotency-Key", crypto.randomUUID());
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () =>
      request.status < 300
        ? resolve(request.response)
        : reject(new Problem(request.response || {}, request.status));
    request.onerror = () => reject(new Problem({ title: "No answer", detail: "The upload broke off." }, 0));
    request.send(form);
  });
}

/** Shows the key field where the service asks for a key; `retry` runs once one was typed. */
export function askForKey(retry) {
  const field = document.querySelector(".key");
  const input = field.querySelector("input");
  field.hidden = false;
  input.onchange = () => {
    sessionStorage.setItem(stored, input.value.trim());
    retry();
  };
}
