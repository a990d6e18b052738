// Static figures of the images, for browsers without WebGL.

import { picture, whenDrawn } from "./api.js";
import { byId, el } from "./dom.js";
import { channelName } from "./explanation.js";
import { t } from "./texts.js";

/** Load the figures when their part of the page is opened; those that could not be loaded, again the next time. */
export function offerStills(path, attribution) {
  byId("stills").addEventListener("toggle", () => {
    const place = byId("stills-pictures");
    if (!byId("stills").open || (place.childElementCount && !place.querySelector("p"))) return;
    place.replaceChildren();
    for (const { modality } of attribution.imaging) {
      const image = el("img", { class: "figure", alt: t("{image}: axial, coronal and sagittal slices through the peak, and a projection", { image: channelName(modality) }) });
      place.append(image);
      picture(image, whenDrawn(`${path}/figures/overlay-${modality}.png`)).catch((problem) => image.replaceWith(el("p", { class: "quiet" }, problem.message)));
    }
  });
}
