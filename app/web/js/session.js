// The credential of the reader: an API key or an access token. It is kept while the tab is open.

const stored = "rlvo-key";
const storedLogin = "rlvo-login";
const margin = 60; // seconds before its expiry at which a token is renewed

let renewing = null;

export const credential = () => sessionStorage.getItem(stored);

/** What a login has given besides the access token: {expires, refresh_token, id_token, token_endpoint, client_id}. */
export const login = () => JSON.parse(sessionStorage.getItem(storedLogin) || "null");

/** Keep a key, or an access token with its login; null forgets the one before. */
export function keep(secret, details = null) {
  if (secret) sessionStorage.setItem(stored, secret);
  else sessionStorage.removeItem(stored);
  if (details) sessionStorage.setItem(storedLogin, JSON.stringify(details));
  else sessionStorage.removeItem(storedLogin);
}

/** Send a form to the token endpoint of the provider. */
export async function askForToken(endpoint, parameters) {
  const answer = await fetch(endpoint, { method: "POST", body: new URLSearchParams(parameters), credentials: "omit" });
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok || !document.access_token) throw new Error(document.error_description || document.error || String(answer.status));
  return document;
}

/** Keep the token of a response of the provider. */
export function keepToken(document, { token_endpoint, client_id, refresh_token, id_token }) {
  keep(document.access_token, {
    token_endpoint, client_id,
    expires: Date.now() / 1000 + (document.expires_in || 3600),
    refresh_token: document.refresh_token || refresh_token,
    id_token: document.id_token || id_token,
  });
}

async function renew(details) {
  const { token_endpoint, client_id, refresh_token } = details;
  try {
    keepToken(await askForToken(token_endpoint, { grant_type: "refresh_token", refresh_token, client_id }), details);
  } catch {
    keep(credential(), { ...details, refresh_token: undefined }); // the service then asks for a new login
  }
}

/** Renew an access token that ends soon, if the provider has given the means. */
export async function fresh() {
  const details = login();
  if (!details?.refresh_token || details.expires - margin > Date.now() / 1000) return;
  renewing ||= renew(details).finally(() => { renewing = null; });
  await renewing;
}
