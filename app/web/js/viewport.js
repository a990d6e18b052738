// One image of the viewer on NiiVue: anatomy, a map on top of it, window, slab, position and value.
//
// The position is in RAS+ mm of the image (its NIfTI affine). The corners of the picture show what is seen: image and
// slab, window, convention, and the value under the pointer or, without a pointer, under the crosshair.

import { bytes } from "./api.js";
import { el } from "./dom.js";
import { channelName } from "./explanation.js";
import { apply, multiply } from "./matrices.js";
import { slabs } from "./projection.js";
import { t } from "./texts.js";
import { firstPreset, presetOf, presets, ranges, units } from "./windows.js";

const { Niivue, NVImage, DRAG_MODE: drag, SHOW_RENDER: render, SLICE_TYPE: slice } = globalThis.niivue || {};

/** Names of the planes; NiiVue's number, and the axis (x, y, z) through the plane. */
export const planes = {
  axial: { type: slice?.AXIAL, through: 2, across: 0, up: 1 },
  coronal: { type: slice?.CORONAL, through: 1, across: 0, up: 2 },
  sagittal: { type: slice?.SAGITTAL, through: 0, across: 1, up: 2 },
  three: { type: slice?.MULTIPLANAR, through: 2, across: 0, up: 1 },
};

/** What the left button and one finger do. NiiVue measures by touch only with a double tap and a drag. */
const tools = {
  crosshair: { left: drag?.crosshair, finger: drag?.crosshair, wheel: drag?.measurement },
  window: { left: drag?.windowing, finger: drag?.windowing, wheel: drag?.measurement },
  ruler: { left: drag?.measurement, finger: drag?.crosshair, wheel: drag?.measurement },
  zoom: { left: drag?.pan, finger: drag?.crosshair, wheel: drag?.pan },
};

// Okabe and Ito's vermilion and blue, lighter towards the peak; yellow for a mask.
const ramps = {
  raises: { R: [150, 213, 255], G: [62, 94, 190], B: [0, 0, 110], A: [0, 200, 255], I: [0, 128, 255] },
  lowers: { R: [0, 0, 130], G: [70, 114, 205], B: [120, 178, 255], A: [0, 200, 255], I: [0, 128, 255] },
  mask: { R: [240, 240], G: [228, 228], B: [66, 66], A: [0, 255], I: [0, 255] },
};

/** Return the position (mm) and the value of the voxel with the largest absolute value. (The extremes that NiiVue
 *  computes leave out the faces of the volume.) */
function peakOf(volume) {
  const { scl_slope: slope, scl_inter: inter, dims } = volume.hdr;
  let [at, most, value] = [0, -1, 0];
  volume.img.forEach((raw, index) => {
    const here = raw * (slope || 1) + (inter || 0);
    if (Math.abs(here) > most) [at, most, value] = [index, Math.abs(here), here];
  });
  const [, nx, ny] = dims;
  return { place: apply(volume.hdr.affine, [at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))]), value };
}

export class Viewport {
  /** @param hooks `moved(viewport, mm)` after a move of the crosshair, `zoomed(viewport)`, `key(viewport, event)`,
   *  `measured(mm)` after a distance. */
  constructor(channel, hooks) {
    this.channel = channel;
    this.isCt = channel in firstPreset;
    this.hooks = hooks;
    this.plane = "axial";
    this.slab = "";
    this.convention = "radiological";
    this.build();
  }

  build() {
    const name = channelName(this.channel);
    const corner = (place) => el("span", { class: `corner ${place}`, "aria-hidden": "true" });
    this.corners = { what: corner("top left"), window: corner("top right"), view: corner("bottom left"), value: corner("bottom right") };
    this.canvas = el("canvas", { id: `canvas-${this.channel}`, tabindex: 0, role: "application",
      "aria-label": t("{image}: planes with the map on top", { image: name }), "aria-describedby": "keys" });
    this.preset = el("select", { "aria-label": t("Window of {image}", { image: name }) },
      ...Object.entries(presets).map(([key, { name: label, width, level }]) => el("option", { value: key }, `${t(label)} ${width}/${level}`)),
      el("option", { value: "custom" }, t("own values")));
    const number = (label, more) => el("input", { type: "number", step: 10, "aria-label": t(label, { image: name }), ...more });
    this.width = number("Window width of {image} in HU", { min: 1 });
    this.level = number("Window level of {image} in HU", {});
    const reset = el("button", { type: "button", class: "plain small" }, t("Reset the window"));
    this.slider = el("input", { type: "range", min: 1, step: 1, "aria-label": t("Slice of {image}", { image: name }) });
    this.sliceSaid = el("output", {});
    this.root = el("figure", { class: "viewport", "data-image": this.channel },
      el("figcaption", {}, el("strong", {}, name), ...(this.isCt ? [this.preset,
        el("label", {}, "W ", this.width), el("label", {}, "L ", this.level), reset] : [])),
      el("div", { class: "viewer" }, this.canvas, ...Object.values(this.corners)),
      el("div", { class: "slice" }, this.slider, this.sliceSaid));
    if (this.isCt) this.preset.value = firstPreset[this.channel];
    this.preset.onchange = () => this.usePreset(this.preset.value);
    reset.onclick = () => this.resetWindow();
    for (const field of [this.width, this.level]) {
      field.onchange = () => this.setWindow(Math.max(1, Number(this.width.value) || 1), Number(this.level.value) || 0);
    }
    this.slider.oninput = () => this.toSlice(Number(this.slider.value) - 1);
  }

  async start() {
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.94, 0.89, 0.26, 0.7], crosshairGap: 6, crosshairWidth: 0.4, crosshairWidthUnit: "mm",
      isRadiologicalConvention: this.convention === "radiological", multiplanarShowRender: render.NEVER,
      rulerColor: [0.94, 0.89, 0.26, 1], measureLineColor: [0.94, 0.89, 0.26, 1], measureTextColor: [0.94, 0.89, 0.26, 1], rulerWidth: 2,
      fontColor: [0.8, 0.8, 0.8, 1], showAllOrientationMarkers: true, dragAndDropEnabled: false, logLevel: "error",
      loadingText: " ",
    });
    for (const [name, ramp] of Object.entries(ramps)) this.niivue.addColormap(name, ramp);
    this.niivue.resetBriCon = () => this.resetWindow(); // a double click or a long touch
    this.niivue.onLocationChange = ({ mm }) => this.located([...mm].slice(0, 3));
    this.niivue.onMeasurementCompleted = ({ distance }) => this.hooks.measured(distance);
    await this.niivue.attachToCanvas(this.canvas);
    this.canvas.viewer = this.niivue;
    for (const kind of ["keydown", "keyup"]) {
      this.canvas.addEventListener(kind, (event) => {
        event.stopPropagation(); // NiiVue's own keys differ
        if (kind === "keydown" && !event.ctrlKey && !event.metaKey && !event.altKey) this.hooks.key(this, event);
      }, { capture: true });
    }
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => this.showValue(this.place));
    for (const kind of ["mousemove", "touchmove"]) this.canvas.addEventListener(kind, () => this.showWindow());
    for (const kind of ["wheel", "mouseup"]) this.canvas.addEventListener(kind, () => this.hooks.zoomed(this));
  }

  /** Show the anatomy. `base`: `file`, and `affine` (voxel -> mm), if it is known; `content`: the bytes of the file. */
  async load(base, content, plane, slab) {
    Object.assign(this, { plane, slab });
    delete this.canvas.dataset.loaded;
    for (const volume of [...this.niivue.volumes].reverse()) this.niivue.removeVolume(volume);
    const [low, high] = ranges[this.channel] || this.range();
    const volume = await NVImage.loadFromUrl({ url: content, name: base.file, colormap: "gray", cal_min: low, cal_max: high });
    if (base.affine) volume.setAffine(base.affine);
    this.base = base;
    [this.plain, this.overlay, this.peak] = [null, null, null];
    this.niivue.addVolume(volume);
    this.setPlane(this.plane);
    this.showWindow();
  }

  /** Put a map on the anatomy, or none. `map`: `path`, `file`, `kind`, `most` (end of its colours, if it has one) and
   *  `baseFromMap`, mm of the map -> mm of the anatomy; opacity and threshold as in `paint`. */
  async lay(map, opacity, from) {
    if (this.overlay) this.niivue.removeVolume(this.overlay);
    [this.overlay, this.peak] = [null, null];
    if (!map) return;
    const signed = map.kind === "attribution";
    const colours = signed ? { colormap: "raises", colormapNegative: "lowers" } : { colormap: ["vessels", "intracranial"].includes(map.kind) ? "mask" : "viridis" };
    const overlay = await NVImage.loadFromUrl({ url: await bytes(map.path), name: map.file, opacity: 0, cal_min: 0, cal_max: 1, ...colours });
    if (signed) this.peak = peakOf(overlay);
    overlay.setAffine(multiply(map.baseFromMap, overlay.hdr.affine));
    if (this.peak) this.peak.place = apply(map.baseFromMap, this.peak.place);
    overlay.unit = units[map.kind] || "";
    overlay.kind = map.kind;
    overlay.most = map.most || Math.abs(this.peak?.value || 0) || 1;
    this.overlay = overlay;
    this.colour(opacity, from);
    this.niivue.addVolume(overlay);
  }

  /** Colours from the share `from` of the largest value upwards. (The negative colours take the same ends, mirrored, as
   *  long as they are given none of their own.) */
  paint(opacity, from) {
    if (!this.overlay) return;
    this.colour(opacity, from);
    this.niivue.updateGLVolume();
  }

  colour(opacity, from) {
    Object.assign(this.overlay, { cal_min: from * this.overlay.most, cal_max: this.overlay.most, opacity });
  }

  // ---- window ----

  range() {
    const { width, level } = presets[this.preset.value] || { width: Number(this.width.value), level: Number(this.level.value) };
    return [level - width / 2, level + width / 2];
  }

  usePreset(name) {
    if (presets[name]) this.setWindow(presets[name].width, presets[name].level);
    else this.width.focus();
  }

  resetWindow() {
    if (this.isCt) this.usePreset(firstPreset[this.channel]);
  }

  setWindow(width, level) {
    if (!this.isCt || !this.niivue.volumes.length) return;
    Object.assign(this.niivue.volumes[0], { cal_min: level - width / 2, cal_max: level + width / 2 });
    this.niivue.updateGLVolume();
    this.showWindow();
  }

  showWindow() {
    if (!this.isCt || !this.niivue.volumes.length) return;
    const { cal_min: low, cal_max: high } = this.niivue.volumes[0];
    const [width, level] = [Math.round(high - low), Math.round((high + low) / 2)];
    if (document.activeElement !== this.width) this.width.value = width;
    if (document.activeElement !== this.level) this.level.value = level;
    this.preset.value = presetOf(width, level);
    this.corners.window.textContent = `W ${width} L ${level}`;
  }

  // ---- plane, slab, convention, tool ----

  setPlane(plane) {
    this.plane = plane;
    this.niivue.setSliceType(planes[plane].type);
    this.slider.parentElement.hidden = plane === "three";
    if (this.slab && this.niivue.volumes.length) this.project();
    this.showWhat();
    this.showSlice();
  }

  /** Show slabs of `slab` mm, `whole`, or slices if it is empty. */
  setSlab(slab) {
    this.slab = slab;
    if (this.niivue.volumes.length) this.project();
    this.showWhat();
  }

  project() {
    const [volume] = this.niivue.volumes;
    this.plain ||= volume.img;
    const axis = Math.abs(volume.permRAS[planes[this.plane].through]) - 1;
    const shape = [...volume.hdr.dims].slice(1, 4);
    const count = this.slab === "whole" ? shape[axis] : Math.round(Number(this.slab) / volume.hdr.pixDims[axis + 1]);
    volume.img = this.slab ? slabs(this.plain, shape, axis, count) : this.plain;
    this.niivue.updateGLVolume();
    this.showValue(this.place);
  }

  setConvention(convention) {
    this.convention = convention;
    this.niivue.setRadiologicalConvention(convention === "radiological");
    this.corners.view.textContent = t(convention === "radiological" ? "radiological: right is left" : "neurological: left is left");
  }

  setTool(name) {
    const { left, finger, wheel } = tools[name];
    this.niivue.setDragMode(wheel);
    this.niivue.setMouseEventConfig({ leftButton: { primary: left, withShift: drag.measurement, withCtrl: drag.pan },
      rightButton: drag.windowing, centerButton: drag.pan });
    this.niivue.setTouchEventConfig({ singleTouch: finger, doubleTouch: wheel });
  }

  zoom([x, y, z, scale]) {
    this.niivue.scene.pan2Dxyzmm = [x, y, z, Math.min(Math.max(scale, 0.5), 20)];
    this.niivue.drawScene();
  }

  // ---- position and value ----

  /** Move the crosshair by voxels along x, y and z (RAS). */
  step(x, y, z) {
    this.niivue.moveCrosshairInVox(x, y, z);
  }

  /** Move the crosshair to a slice of the shown plane, counted from 0. */
  toSlice(index) {
    const axis = planes[this.plane].through;
    const to = [...this.niivue.scene.crosshairPos];
    to[axis] = (index + 0.5) / this.niivue.volumes[0].dimsRAS[axis + 1];
    this.niivue.scene.crosshairPos = to;
    this.niivue.drawScene();
    this.niivue.createOnLocationChange();
  }

  /** Move the crosshair to a place of the image (mm), without a report to the other image. */
  moveTo(mm) {
    this.niivue.scene.crosshairPos = [...this.niivue.mm2frac(mm, 0, true)].map((share) => Math.min(Math.max(share, 0), 1));
    this.niivue.drawScene();
    this.showPlace(mm);
  }

  located(mm) {
    this.showPlace(mm);
    this.hooks.moved(this, mm);
  }

  showPlace(mm) {
    this.place = mm;
    this.showValue(mm);
    this.showSlice();
  }

  showSlice() {
    const [volume] = this.niivue.volumes;
    if (!volume || this.plane === "three") return;
    const axis = planes[this.plane].through;
    const count = volume.dimsRAS[axis + 1];
    const index = Math.min(Math.floor(this.niivue.scene.crosshairPos[axis] * count), count - 1);
    Object.assign(this.slider, { max: count, value: index + 1 });
    this.sliceSaid.textContent = t("slice {number} of {count}", { number: index + 1, count });
  }

  /** Value of anatomy and map at a place (mm), null outside. */
  valuesAt(mm) {
    return this.niivue.volumes.map((volume) => {
      const voxel = [...volume.mm2vox(mm)];
      const inside = voxel.every((index, axis) => index >= 0 && index < volume.dimsRAS[axis + 1]);
      return inside ? volume.getValue(...voxel, volume.frame4D) : null;
    });
  }

  /** Value of the image at a place in words, such as “37 HU”. */
  valueAt(mm) {
    const [value] = this.valuesAt(mm);
    if (value === null || value === undefined) return t("outside");
    const unit = units[this.channel];
    return unit ? `${value.toFixed(unit === "HU" ? 0 : 1)} ${unit}` : value.toFixed(2);
  }

  hover(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.niivue.uiData.dpr || 1;
    const share = this.niivue.canvasPos2frac([(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio]);
    if (share[0] >= 0) this.showValue([...this.niivue.frac2mm(share, 0, true)].slice(0, 3));
  }

  showValue(mm) {
    if (mm && this.niivue.volumes.length) this.corners.value.textContent = this.valueAt(mm);
  }

  showWhat() {
    const slab = this.slab === "whole" ? t("MIP of the whole volume") : this.slab ? t("MIP {mm} mm", { mm: this.slab }) : "";
    this.corners.what.textContent = [channelName(this.channel), slab].filter(Boolean).join(" · ");
  }
}
