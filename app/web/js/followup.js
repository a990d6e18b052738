// Forms for the review of a clinician and for the outcome of the thrombectomy.

import { get, send, tagged } from "./api.js";
import { decimalField } from "./decimals.js";
import { byId, el, timeOf } from "./dom.js";
import { caller } from "./login.js";
import { showProblem } from "./problem.js";
import { t } from "./texts.js";

const remembered = "rlvo-reviewer";

const said = ({ created, reviewer, author, verdict, reason, comment }) =>
  el("li", {}, el("strong", {}, verdict === "agree" ? t("Agrees") : t("Overrides: {reason}", { reason: t(reason.replaceAll("-", " ")) })),
    ` · ${reviewer}${author && author !== reviewer ? ` (${t("sent by {author}", { author })})` : ""} · ${timeOf(created)}`, comment ? el("div", { class: "quiet" }, comment) : null);

async function showReviews(path) {
  const reviews = await get(`${path}/reviews`);
  byId("reviews").replaceChildren(...(reviews.length ? reviews.map(said) : [el("li", { class: "quiet" }, t("None yet."))]));
}

function reviewing(path, person) {
  const form = byId("review");
  const fields = form.elements;
  const reasoned = () => {
    const overriding = fields.verdict.value === "override";
    fields.reason.disabled = !overriding;
    fields.reason.required = overriding;
  };
  form.addEventListener("change", reasoned);
  reasoned();
  fields.reviewer.value = sessionStorage.getItem(remembered) || "";
  // A key or login names the reviewer; only without one a pseudonym is typed.
  if (person.identified) {
    fields.reviewer.required = false;
    fields.reviewer.closest("label").replaceChildren(t("Your review is recorded as {name}.", { name: person.name }));
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("review-problem").replaceChildren();
    const draft = { verdict: fields.verdict.value, comment: fields.comment.value };
    if (!person.identified) draft.reviewer = fields.reviewer.value;
    if (draft.verdict === "override") draft.reason = fields.reason.value;
    try {
      await send("POST", `${path}/reviews`, draft);
      if (draft.reviewer) sessionStorage.setItem(remembered, draft.reviewer);
      fields.comment.value = "";
      await showReviews(path);
      byId("review-said").textContent = t("Saved.");
    } catch (problem) {
      showProblem(byId("review-problem"), problem);
    }
  });
}

const verdicts = { true: "refractory", false: "not refractory", null: "open: the final stenosis was not measured" };


/** @param tag entity tag of the stored outcome; a correction must send it */
function outcoming(path, outcome, tag) {
  const form = byId("outcome");
  const fields = form.elements;
  let seen = tag;
  const stenosis = decimalField(fields.stenosis, { minimum: 0, maximum: 100, unit: "%" });
  const tell = (known) => {
    byId("outcome-said").textContent = known
      ? t("Saved: {verdict}. Save again to correct it.", { verdict: t(verdicts[known.refractory]) }) : "";
  };
  if (outcome) {
    fields.etici.value = outcome.etici;
    fields.rescue.checked = outcome.rescue_treatment;
    stenosis.show(outcome.final_stenosis_percent);
  }
  tell(outcome);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("outcome-problem").replaceChildren();
    const draft = {
      etici: fields.etici.value,
      rescue_treatment: fields.rescue.checked,
      final_stenosis_percent: stenosis.value() ?? null,
    };
    try {
      const [known, next] = await send("PUT", `${path}/outcome`, draft, seen ? { "If-Match": seen } : {});
      seen = next;
      tell(known);
    } catch (problem) {
      showProblem(byId("outcome-problem"), problem);
    }
  });
}

export async function showFollowUp(path, { decision }) {
  byId("review").hidden = !decision;
  byId("no-review").hidden = Boolean(decision);
  try {
    reviewing(path, await caller());
    await showReviews(path);
    outcoming(path, ...await tagged(`${path}/outcome`));
  } catch (problem) {
    showProblem(byId("review-problem"), problem);
  }
}
