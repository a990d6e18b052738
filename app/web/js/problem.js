// Show the error of a call, in the same form everywhere.

import { askForKey } from "./api.js";
import { el } from "./dom.js";
import { t } from "./texts.js";

export function showProblem(place, problem, retry) {
  if (problem.status === 401 && retry) askForKey(retry);
  const faults = (problem.errors || []).map((error) => `${error.field}: ${error.detail}`);
  const list = faults.filter((fault) => fault !== problem.message).map((fault) => el("li", {}, fault));
  place.replaceChildren(
    el("div", { class: "problem" }, el("strong", {}, problem.title || t("Error")), " ", problem.message === problem.title ? "" : problem.message,
      list.length ? el("ul", {}, ...list) : null),
  );
}
