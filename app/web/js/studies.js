// Received DICOM studies: their state, what each series was taken for and why, and their predictions.

import { get } from "./api.js";
import { byId, el, timeOf } from "./dom.js";
import { redraw } from "./rows.js";
import { t } from "./texts.js";

const shown = 20;

/** Series of a study, each with its role and the reason; a series without a role was not assembled yet. */
function seriesOf({ series }) {
  const used = series.filter((each) => each.used).map(({ role }) => role.toUpperCase());
  return el("details", {},
    el("summary", {}, t("{count} series", { count: series.length }), used.length ? ` · ${used.join(", ")}` : ""),
    el("ul", {}, ...series.map(({ number, received, role, used: taken, reason }) => el("li", {},
      el("strong", {}, `${number ?? "–"}: ${role ? (role === "other" ? t("other") : role.toUpperCase()) : t("not assembled yet")}`),
      ` · ${t("{count} images", { count: received })}${taken ? ` · ${t("used")}` : ""}`,
      reason ? el("span", { class: "quiet" }, ` · ${reason}`) : null))));
}

function row(study) {
  const { uid, created, state, instances, predictions, error } = study;
  return el("tr", { "data-id": uid },
    el("td", {}, timeOf(created)),
    el("td", { title: uid }, `…${uid.slice(-12)}`),
    el("td", {}, t(state), error ? el("p", { class: "quiet" }, error.detail) : null),
    el("td", { class: "number" }, String(instances)),
    el("td", {}, seriesOf(study)),
    el("td", {}, ...predictions.flatMap(({ id, revision }) =>
      [el("a", { href: `/predictions/${encodeURIComponent(id)}` }, t("revision {number}", { number: revision })), " "])));
}

/** Draw the received studies; the section is hidden while there are none. */
export async function refreshStudies() {
  const { items } = await get(`/v1/studies?limit=${shown}`);
  byId("studies").hidden = !items.length;
  const body = byId("studies-rows");
  const opened = new Set([...body.children].filter((each) => each.querySelector("details")?.open).map((each) => each.dataset.id));
  redraw(body, items.map((study) => {
    const made = row(study);
    made.querySelector("details").open = opened.has(study.uid);
    return made;
  }));
}
