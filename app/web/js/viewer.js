// The images in three planes with an attribution overlay, on NiiVue.
//
// All images are in MNI space: `aligned-<modality>` as the image, `aligned-attribution-<modality>` on top.
// The threshold of the overlay is a share of its peak, so that weak maps are visible too.
// The crosshair starts at the peak. Arrow keys and page keys move it; Home returns to the peak.

import { headers, picture } from "./api.js";
import { byId, el } from "./dom.js";
import { channelName, signed } from "./explanation.js";
import { showProblem } from "./problem.js";
import { t } from "./texts.js";

const conventionStored = "rlvo-convention";

const windows = { ncct: [0, 80], cta: [-50, 350], vessels: [0, 1], tmax: [0, 16], rcbf: [0, 1.6] };

// Okabe and Ito's vermilion and blue, lighter towards the peak.
const ramps = {
  raises: { R: [150, 213, 255], G: [62, 94, 190], B: [0, 0, 110], A: [0, 200, 255], I: [0, 128, 255] },
  lowers: { R: [0, 0, 130], G: [70, 114, 205], B: [120, 178, 255], A: [0, 200, 255], I: [0, 128, 255] },
};

const steps = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
  PageDown: [0, 0, -1], PageUp: [0, 0, 1],
};

/** Return the MNI position (mm) and the value of the voxel with the largest absolute value. (The extremes that NiiVue
 *  computes leave out the faces of the volume.) */
function peak(volume) {
  const { scl_slope: slope, scl_inter: inter, dims } = volume.hdr;
  let [at, most, value] = [0, -1, 0];
  volume.img.forEach((raw, index) => {
    const here = raw * (slope || 1) + (inter || 0);
    if (Math.abs(here) > most) [at, most, value] = [index, Math.abs(here), here];
  });
  const [, nx, ny] = dims;
  const voxel = [at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))];
  const place = volume.hdr.affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
  return { place, value };
}

/** A position in MNI space in words: “42 mm left, 20 mm posterior, 8 mm superior”. */
function placeInWords(mm) {
  const ends = [["left", "right"], ["posterior", "anterior"], ["inferior", "superior"]];
  return ends.map(([below, above], axis) =>
    `${Math.abs(mm[axis]).toFixed(0)} mm ${t(mm[axis] < 0 ? below : above)}`).join(", ");
}

const units = { ncct: "HU", cta: "HU", tmax: "s" };

/** Value of one volume under the crosshair, with its name and unit. */
function valueInWords({ name, value }) {
  const channel = name.replace(/^aligned-(attribution-)?/, "").replace(/\.nii\.gz$/, "");
  if (name.includes("attribution")) return `${t("attribution")} ${signed(value, 5)}`;
  const shown = units[channel] ? `${value.toFixed(channel === "tmax" ? 1 : 0)} ${units[channel]}` : value.toFixed(2);
  return `${channelName(channel)} ${shown}`;
}

/** Show static figures of the same images, for browsers without WebGL. */
function offerStills(path, attribution) {
  byId("stills").addEventListener("toggle", () => {
    const place = byId("stills-pictures");
    if (place.childElementCount) return;
    for (const { modality } of attribution.imaging) {
      const image = el("img", { class: "figure", alt: t("{image}: axial, coronal and sagittal slices through the peak, and a projection", { image: channelName(modality) }) });
      place.append(image);
      picture(image, `${path}/figures/overlay-${modality}.png`).catch(() => image.remove());
    }
  });
}

class Viewer {
  constructor(path) {
    this.path = path;
    this.niivue = new globalThis.niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.94, 0.89, 0.26, 0.7], isRadiologicalConvention: byId("convention").value === "radiological",
      crosshairGap: 6, crosshairWidth: 0.5, show3Dcrosshair: false, dragAndDropEnabled: false, logLevel: "error",
    });
    for (const [name, ramp] of Object.entries(ramps)) this.niivue.addColormap(name, ramp);
    this.niivue.onLocationChange = ({ mm, values }) => {
      byId("location").textContent = `${placeInWords(mm)} (MNI) · ${values.map(valueInWords).join(" · ")}`;
    };
  }

  async open() {
    await this.niivue.attachToCanvas(byId("canvas"));
    this.niivue.setMultiplanarLayout(3);
    byId("convention").onchange = () => {
      localStorage.setItem(conventionStored, byId("convention").value);
      this.niivue.setRadiologicalConvention(byId("convention").value === "radiological");
    };
    byId("base").onchange = () => this.load();
    byId("overlay").onchange = () => this.load();
    byId("opacity").oninput = () => this.paint();
    byId("threshold").oninput = () => this.paint();
    byId("to-peak").onclick = () => this.goToPeak();
    byId("canvas").addEventListener("keydown", (event) => this.key(event), { capture: true });
    byId("canvas").viewer = this.niivue;
    await this.load();
  }

  async load() {
    byId("canvas").dataset.loaded = "";
    const [base, overlay] = [byId("base").value, byId("overlay").value];
    const url = (name) => ({ url: `${this.path}/maps/${name}.nii.gz`, name: `${name}.nii.gz`, headers: headers() });
    const [low, high] = windows[base.replace("aligned-", "")] || [undefined, undefined];
    const volumes = [{ ...url(base), colormap: "gray", cal_min: low, cal_max: high }];
    if (overlay) volumes.push({ ...url(overlay), colormap: "raises", colormapNegative: "lowers" });
    await this.niivue.loadVolumes(volumes);
    this.peak = overlay ? peak(this.niivue.volumes[1]) : null;
    this.paint();
    this.goToPeak();
    byId("canvas").dataset.loaded = `${base} ${overlay}`;
  }

  paint() {
    byId("opacity-said").textContent = `${Math.round(100 * byId("opacity").value)} %`;
    byId("threshold-said").textContent = t("{share} % of the peak", { share: Math.round(100 * byId("threshold").value) });
    const overlay = this.niivue.volumes[1];
    if (!overlay) return;
    // The negative colours take the same ends, mirrored, as long as they are given none of their own.
    const most = Math.abs(this.peak.value) || 1;
    overlay.cal_min = Number(byId("threshold").value) * most;
    overlay.cal_max = most;
    overlay.opacity = Number(byId("opacity").value);
    this.niivue.updateGLVolume();
  }

  goToPeak() {
    byId("to-peak").disabled = !this.peak;
    byId("peak-said").textContent = "";
    if (!this.peak) return;
    const { place, value } = this.peak;
    this.niivue.scene.crosshairPos = this.niivue.mm2frac(place);
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
    byId("peak-said").textContent = t("Peak {place}: {value} log-odds per voxel.", { place: placeInWords(place), value: signed(value, 5) });
  }

  key(event) {
    const step = steps[event.key];
    if (!step && event.key !== "Home") return;
    event.preventDefault();
    event.stopPropagation();
    // The arrow keys move the crosshair as the picture shows it.
    const sideways = byId("convention").value === "radiological" ? -1 : 1;
    if (step) this.niivue.moveCrosshairInVox(sideways * step[0], step[1], step[2]);
    else this.goToPeak();
  }
}

/** @param attribution of the prediction; without maps the viewer stays hidden. */
export async function showViewer(path, attribution) {
  const maps = attribution?.maps || [];
  const bases = maps.filter((name) => /^aligned-(?!attribution)/.test(name));
  const overlays = maps.filter((name) => name.startsWith("aligned-attribution-"));
  if (!bases.length) return;
  const option = (prefix) => (name) => el("option", { value: name }, channelName(name.replace(prefix, "")));
  byId("base").replaceChildren(...bases.map(option("aligned-")));
  byId("overlay").replaceChildren(...overlays.map(option("aligned-attribution-")), el("option", { value: "" }, t("none")));
  byId("convention").value = localStorage.getItem(conventionStored) || "radiological";
  // What weighs most is shown first, on its own image.
  const [first] = [...attribution.imaging].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  byId("base").value = `aligned-${first.modality}`;
  byId("overlay").value = `aligned-attribution-${first.modality}`;
  byId("viewer-panel").hidden = false;
  offerStills(path, attribution);
  try {
    await new Viewer(path).open();
  } catch (problem) {
    for (const part of byId("viewer-panel").querySelectorAll(".viewer, .controls, #keys")) part.hidden = true;
    byId("stills").open = true;
    showProblem(byId("viewer-problem"), { title: t("The viewer could not start."), message: `${problem.message || problem} ${t("The figures below show the same images.")}` });
  }
}
