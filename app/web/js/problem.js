// One way to show a problem, wherever it came up.

import { askForKey } from "./api.js";
import { el } from "./dom.js";

export function showProblem(place, problem, retry) {
  if (problem.status === 401 && retry) askForKey(retry);
  const list = (problem.errors || []).map((error) => el("li", {}, `${error.field}: ${error.detail}`));
  place.replaceChildren(
    el("div", { class: "problem" }, el("strong", {}, problem.title || "Something failed"), " ", problem.message,
      list.length ? el("ul", {}, ...list) : null),
  );
}
