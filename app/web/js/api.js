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

export async function get(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json", ...headers() } });
  } catch {
    throw new Problem({ title: "No answer", detail: "The service cannot be reached." }, 0);
  }
  if (answer.ok) return answer.json();
  throw new Problem(await answer.json().catch(() => ({})), answer.status);
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
