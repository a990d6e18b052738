// Login of a person at the identity provider of the site: authorization code flow with PKCE (RFC 6749, RFC 7636).
//
// The page is a public client with one redirect address, the start page. The service checks the access token, so the
// page reads nothing from it.

import { get, Problem } from "./api.js";
import { byId, el } from "./dom.js";
import { showProblem } from "./problem.js";
import { askForToken, credential, keep, keepToken, login } from "./session.js";
import { t } from "./texts.js";

const pending = "rlvo-login-pending";
const redirect = `${location.origin}/`;
let provider = {};
let known = null; // promise of the caller

const encoded = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = () => encoded(crypto.getRandomValues(new Uint8Array(32)));
const fault = (detail) => new Problem({ title: t("The login failed"), detail }, 0);

/** The addresses of the provider, from its discovery document. */
async function discover() {
  let found;
  try {
    found = await (await fetch(`${provider.issuer.replace(/\/$/, "")}/.well-known/openid-configuration`, { credentials: "omit" })).json();
  } catch {
    throw fault(t("The identity provider cannot be reached. Try again, or use an API key."));
  }
  if (found.issuer !== provider.issuer) throw fault(t("The identity provider names another issuer than this service."));
  return found;
}

async function start() {
  if (!crypto.subtle) throw fault(t("The login needs HTTPS. Open this page with https://."));
  const { authorization_endpoint, token_endpoint } = await discover();
  const [state, verifier] = [random(), random()];
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  sessionStorage.setItem(pending, JSON.stringify({ state, verifier, token_endpoint, from: location.pathname }));
  location.assign(`${authorization_endpoint}?${new URLSearchParams({
    response_type: "code", client_id: provider.client_id, redirect_uri: redirect, scope: provider.scope, state,
    code_challenge: encoded(new Uint8Array(digest)), code_challenge_method: "S256",
  })}`);
}

/** Take the code that the provider has sent back with the address of this page. */
async function finish() {
  const answer = new URLSearchParams(location.search);
  const asked = JSON.parse(sessionStorage.getItem(pending) || "null");
  if (!asked || !answer.has("state")) return;
  sessionStorage.removeItem(pending);
  history.replaceState(null, "", location.pathname); // the code stays out of the history
  if (answer.get("state") !== asked.state) throw fault(t("The answer of the identity provider belongs to another login. Try again."));
  if (answer.has("iss") && answer.get("iss") !== provider.issuer) throw fault(t("The identity provider names another issuer than this service."));
  if (!answer.get("code")) throw fault(t("The identity provider has refused it. Ask its operator: {code}.", { code: answer.get("error") || "?" }));
  const client = { token_endpoint: asked.token_endpoint, client_id: provider.client_id };
  try {
    keepToken(await askForToken(asked.token_endpoint, {
      grant_type: "authorization_code", code: answer.get("code"), redirect_uri: redirect, client_id: provider.client_id,
      code_verifier: asked.verifier,
    }), client);
  } catch (problem) {
    throw fault(t("The identity provider gives no token: {reason}.", { reason: problem.message }));
  }
  if (/^\/(?!\/)/.test(asked.from) && asked.from !== location.pathname) location.replace(asked.from);
}

/** Who the caller is, as the service says: {name, identified}. */
export function caller() {
  known ||= get("/v1/caller").catch((problem) => {
    known = null;
    throw problem;
  });
  return known;
}

/** Forget the credential here, and end the session at the provider if it offers that. */
async function leave() {
  const details = login();
  keep(null);
  const end = details && (await discover().catch(() => ({}))).end_session_endpoint;
  const parameters = new URLSearchParams({ client_id: provider.client_id || "", post_logout_redirect_uri: redirect });
  if (details?.id_token) parameters.set("id_token_hint", details.id_token);
  if (end) location.assign(`${end}?${parameters}`);
  else location.assign("/");
}

const button = (text, act) => {
  const made = el("button", { type: "button", class: "plain small" }, t(text));
  made.onclick = () => act().catch((problem) => showProblem(byId("who").nextElementSibling, problem));
  return made;
};

async function show() {
  const place = byId("who");
  if (credential()) {
    const person = await caller().catch(() => null);
    if (person?.identified) {
      document.querySelector(".key").hidden = true;
      place.replaceChildren(t("Signed in as {name}", { name: person.name }), " ", button("Sign out", leave));
      return;
    }
  }
  place.replaceChildren(...(provider.issuer ? [button("Log in", start)] : []));
}

/** Finish a login that has just come back, and show in the header who is signed in. */
export async function startSession() {
  const place = el("span", { id: "who", class: "who" });
  document.querySelector("header .key").before(place, el("div", { role: "alert", class: "login-problem" }));
  try {
    provider = await (await fetch("/login.json")).json();
    await finish();
  } catch (problem) {
    showProblem(place.nextElementSibling, problem);
  }
  await show();
  document.addEventListener("rlvo-credential", () => {
    known = null;
    show();
  });
}
