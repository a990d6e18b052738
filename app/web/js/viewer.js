// The viewer: NCCT and CTA side by side and linked, with a map on top, in the patient's space or in MNI space.
//
// A place is passed from one image to the other through MNI space (`alignment.json`); without it, by the coordinates of
// the scanner. In MNI space the images are `aligned-<channel>`, at 2 mm.
// The threshold of a map is a share of its largest value, so that weak maps are visible too.

import { bytes, get } from "./api.js";
import { byId, el } from "./dom.js";
import { channelName, signed } from "./explanation.js";
import { apply, identity, invert, multiply } from "./matrices.js";
import { showProblem } from "./problem.js";
import { offerStills } from "./stills.js";
import { t } from "./texts.js";
import { planes, Viewport } from "./viewport.js";
import { presets, ranges } from "./windows.js";

const conventionStored = "rlvo-convention";
const anatomy = ["ncct", "cta"];
const usualSlab = "20";
const usualThreshold = 0.2; // share of the peak
const tmaxLimit = 6; // s, the usual limit of delayed tissue

/** A position in MNI space in words: “42 mm left, 20 mm posterior, 8 mm superior”. */
function placeInWords(mm) {
  const ends = [["left", "right"], ["posterior", "anterior"], ["inferior", "superior"]];
  return ends.map(([below, above], axis) =>
    `${Math.abs(mm[axis]).toFixed(0)} mm ${t(mm[axis] < 0 ? below : above)}`).join(", ");
}

const gz = (path, name) => ({ path: `${path}/maps/${name}.nii.gz`, file: `${name}.nii.gz`, name });

const channelOf = (kind) => kind.replace("attribution-", "");

class Viewer {
  constructor(path, prediction, alignment) {
    const { attribution, inputs } = prediction;
    Object.assign(this, { path, inputs, alignment });
    this.maps = new Set(attribution?.maps || []);
    this.imaging = [...(attribution?.imaging || [])].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
    const shown = (channel) => channel in inputs || this.maps.has(`aligned-${channel}`);
    this.channels = anatomy.filter(shown);
    // Without a CT there is no anatomy; the map itself is then the image.
    if (!this.channels.length) this.channels = ["tmax", "rcbf", "vessels"].filter(shown).slice(0, 1);
    const hooks = {
      moved: (viewport, mm) => this.moved(viewport, mm), zoomed: (viewport) => this.zoomed(viewport),
      key: (viewport, event) => this.key(viewport, event),
      measured: (mm) => { byId("measured").textContent = t("Distance {mm} mm.", { mm: mm.toFixed(1) }); },
    };
    this.viewports = this.channels.map((channel) => new Viewport(channel, hooks));
  }

  get spaces() {
    const offered = { series: (channel) => channel in this.inputs, mni: (channel) => this.maps.has(`aligned-${channel}`) };
    return Object.keys(offered).filter((space) => this.channels.some(offered[space]));
  }

  get shown() {
    return this.viewports.filter(({ root }) => !root.hidden);
  }

  /** The anatomy of a channel in the chosen space; `mni` maps its mm to MNI mm and is null if it is not known. */
  base(channel) {
    if (byId("space").value === "mni") {
      return this.maps.has(`aligned-${channel}`) ? { ...gz(this.path, `aligned-${channel}`), mni: identity } : null;
    }
    if (!(channel in this.inputs)) return null;
    const place = this.alignment[channel];
    return { path: `${this.path}/inputs/${channel}.nii`, file: `${channel}.nii`, name: channel, affine: place?.affine, mni: place?.mni_from_world };
  }

  /** Map that the reader has chosen, on the anatomy `base` of `channel`; null if there is none for it. */
  map(kind, channel, base) {
    if (!kind || kind === channel) return null;
    const aligned = (name) => base.mni && this.maps.has(name) ? { ...gz(this.path, name), baseFromMap: invert(base.mni) } : null;
    if (kind.startsWith("attribution")) {
      const of = kind === "attribution" ? channel : channelOf(kind);
      const own = of === channel && this.maps.has(`attribution-${of}`) ? { ...gz(this.path, `attribution-${of}`), baseFromMap: identity } : null;
      const found = aligned(`aligned-attribution-${of}`) || own;
      return found && { ...found, kind: "attribution" };
    }
    const sent = this.sent(kind, base);
    const found = kind === "vessels" ? sent || aligned("aligned-vessels") : aligned(`aligned-${kind}`) || sent;
    return found && { ...found, kind, most: ranges[kind][1] };
  }

  /** A map at the resolution at which it was sent or computed. */
  sent(kind, base) {
    const file = this.maps.has(kind) ? gz(this.path, kind)
      : kind in this.inputs ? { path: `${this.path}/inputs/${kind}.nii`, file: `${kind}.nii`, name: kind } : null;
    const place = this.alignment[kind];
    if (!file || (!place && byId("space").value === "mni")) return null;
    return { ...file, baseFromMap: place && base.mni ? multiply(invert(base.mni), place.mni_from_world) : identity };
  }

  get kinds() {
    const explained = [...this.maps].filter((name) => name.startsWith("aligned-attribution-")).map((name) => name.replace("aligned-", ""));
    const measured = ["vessels", "tmax", "rcbf", "intracranial"].filter((kind) => !this.channels.includes(kind)
      && (this.maps.has(`aligned-${kind}`) || this.maps.has(kind) || kind in this.inputs));
    return { explained, measured };
  }

  offer() {
    const { explained, measured } = this.kinds;
    const option = (value, text) => el("option", { value }, text);
    byId("overlay").replaceChildren(
      ...(explained.length ? [option("attribution", t("attribution of each image"))] : []),
      ...explained.map((kind) => option(kind, t("attribution: {image}", { image: channelName(channelOf(kind)) }))),
      ...measured.map((kind) => option(kind, channelName(kind))), option("", t("none")));
    const names = { series: t("series of the patient"), mni: t("MNI space, 2 mm") };
    byId("space").replaceChildren(...this.spaces.map((space) => option(space, names[space])));
    byId("slab").disabled = !this.channels.includes("cta");
    byId("convention").value = localStorage.getItem(conventionStored) || "radiological";
    // What weighs most is shown first, on its own image if that is a CT.
    const strongest = this.imaging[0]?.modality;
    byId("overlay").value = !explained.length ? "" : !strongest || this.channels.includes(strongest) ? "attribution" : `attribution-${strongest}`;
  }

  async open() {
    this.offer();
    byId("viewports").replaceChildren(...this.viewports.map(({ root }) => root));
    for (const viewport of this.viewports) await viewport.start();
    this.setConvention(byId("convention").value);
    this.setTool("crosshair");
    byId("convention").onchange = () => this.setConvention(byId("convention").value);
    byId("tool").onchange = () => this.setTool(byId("tool").value);
    byId("plane").onchange = () => this.setPlane(byId("plane").value);
    byId("slab").onchange = () => this.setSlab(byId("slab").value);
    byId("space").onchange = () => this.load();
    byId("overlay").onchange = () => {
      byId("threshold").value = byId("overlay").value === "tmax" ? tmaxLimit / ranges.tmax[1] : usualThreshold;
      return this.overlay();
    };
    byId("opacity").oninput = () => this.paint();
    byId("threshold").oninput = () => this.paint();
    byId("to-peak").onclick = () => this.goToPeak();
    byId("reset-view").onclick = () => this.resetView();
    await this.load();
  }

  async load() {
    const series = byId("space").value === "series";
    byId("viewer-problem").replaceChildren();
    for (const viewport of this.viewports) viewport.root.hidden = !this.base(viewport.channel);
    const bases = this.shown.map(({ channel }) => this.base(channel));
    const names = this.shown.map(({ channel }) =>
      channelName(channel) + (series ? ` (${(this.inputs[channel].bytes / 1e6).toFixed(0)} MB)` : ""));
    byId("viewer-note").textContent = t("Loading {image} …", { image: names.join(", ") });
    try {
      // All bytes before the first drawing: the service closes a connection whose reader stops to read.
      const contents = await Promise.all(bases.map(({ path }) => bytes(path)));
      for (const [index, viewport] of this.shown.entries()) {
        await viewport.load(bases[index], contents[index], byId("plane").value, viewport.channel === "cta" ? byId("slab").value : "");
      }
    } catch (problem) {
      if (!series || !this.spaces.includes("mni")) throw problem;
      byId("space").value = "mni";
      await this.load();
      showProblem(byId("viewer-problem"), { title: t("The series of the patient cannot be shown."),
        message: `${String(problem.message || problem).replace(/\.?$/, ".")} ${t("The images in MNI space are shown.")}` });
      return;
    }
    byId("viewer-note").textContent = this.note(series);
    await this.overlay();
  }

  note(series) {
    if (!this.channels.some((channel) => anatomy.includes(channel))) return t("The study has no NCCT and no CTA, so no anatomy lies under the map.");
    const linked = this.shown.length < 2 ? "" : !series || this.shown.every(({ base }) => base.mni)
      ? t("NCCT and CTA are linked by their alignment.") : t("NCCT and CTA are linked by the coordinates of the scanner.");
    return [series ? t("The series as sent, at full resolution.") : t("Images in MNI space at 2 mm, not for reading."), linked].filter(Boolean).join(" ");
  }

  async overlay() {
    const kind = byId("overlay").value;
    byId("legend").hidden = !kind.startsWith("attribution");
    const colours = this.colours();
    for (const viewport of this.shown) {
      delete viewport.canvas.dataset.loaded;
      const map = this.map(kind, viewport.channel, viewport.base);
      await viewport.lay(map, ...colours);
      viewport.canvas.dataset.map = map?.name || "";
    }
    this.goToPeak();
    for (const { canvas, base } of this.shown) canvas.dataset.loaded = `${base.name} ${canvas.dataset.map}`;
  }

  /** Opacity and threshold of the map, which are also shown beside their sliders. */
  colours() {
    const [opacity, share] = [Number(byId("opacity").value), Number(byId("threshold").value)];
    byId("opacity-said").textContent = `${Math.round(100 * opacity)} %`;
    const most = ranges[byId("overlay").value]?.[1];
    byId("threshold-said").textContent = most ? `${(share * most).toFixed(1)}${byId("overlay").value === "tmax" ? " s" : ""}`
      : t("{share} % of the peak", { share: Math.round(100 * share) });
    return [opacity, share];
  }

  paint() {
    const colours = this.colours();
    for (const viewport of this.shown) viewport.paint(...colours);
  }

  /** Viewport with a peak whose image weighs most. */
  get strongest() {
    const weight = ({ channel }) => this.imaging.findIndex(({ modality }) => modality === channel);
    return [...this.shown].filter(({ peak }) => peak).sort((a, b) => weight(a) - weight(b))[0];
  }

  /** Go to the peak; without one, stay, or begin in the middle of the image. */
  goToPeak() {
    const viewport = this.strongest;
    byId("to-peak").disabled = !viewport;
    byId("peak-said").textContent = "";
    if (!viewport) {
      const [first] = this.shown;
      const { niivue, place } = first;
      this.show(first, place || [...niivue.frac2mm([0.5, 0.5, 0.5], 0, true)].slice(0, 3));
      return;
    }
    const { place, value } = viewport.peak;
    this.show(viewport, place);
    const words = placeInWords(viewport.base.mni ? apply(viewport.base.mni, place) : place);
    byId("peak-said").textContent = t("Peak {place}: {value} log-odds per voxel.", { place: words, value: signed(value, 5) });
  }

  show(viewport, mm) {
    viewport.moveTo(mm);
    this.moved(viewport, mm);
  }

  /** Move the other images to the same place of the patient, and say it. */
  moved(viewport, mm) {
    const { mni } = viewport.base;
    for (const other of this.shown.filter((each) => each !== viewport)) {
      if (other.base) other.moveTo(mni && other.base.mni ? apply(invert(other.base.mni), apply(mni, mm)) : mm);
    }
    this.say(viewport, mm);
  }

  /** Place and values under the crosshair in words. */
  say(viewport, mm) {
    const { mni } = viewport.base;
    const values = this.shown.filter(({ base }) => base).map((each) => `${channelName(each.channel)} ${each.valueAt(each.place)}`);
    const [, over] = viewport.valuesAt(mm);
    if (viewport.overlay && over !== null && over !== undefined) {
      values.push(viewport.overlay.kind === "attribution" ? `${t("attribution")} ${signed(over, 5)}`
        : `${channelName(viewport.overlay.kind)} ${over.toFixed(1)} ${viewport.overlay.unit}`.trim());
    }
    byId("location").textContent = [mni ? `${placeInWords(apply(mni, mm))} (MNI)` : "", ...values].filter(Boolean).join(" · ");
  }

  zoomed(viewport) {
    for (const other of this.shown.filter((each) => each !== viewport)) other.zoom(viewport.niivue.scene.pan2Dxyzmm);
  }

  setConvention(convention) {
    byId("convention").value = convention;
    localStorage.setItem(conventionStored, convention);
    for (const viewport of this.viewports) viewport.setConvention(convention);
  }

  setTool(tool) {
    byId("tool").value = tool;
    for (const viewport of this.viewports) viewport.setTool(tool);
  }

  setPlane(plane) {
    byId("plane").value = plane;
    for (const viewport of this.shown) viewport.setPlane(plane);
  }

  setSlab(slab) {
    byId("slab").value = slab;
    for (const viewport of this.shown.filter(({ channel }) => channel === "cta")) {
      viewport.setSlab(slab);
      if (viewport.place) this.say(viewport, viewport.place);
    }
  }

  resetView() {
    byId("measured").textContent = "";
    for (const viewport of this.shown) {
      viewport.niivue.clearAllMeasurements();
      viewport.zoom([0, 0, 0, 1]);
    }
  }

  key(viewport, event) {
    const done = this.move(viewport, event.key) || this.command(viewport, event.key.toLowerCase());
    if (done) event.preventDefault();
  }

  /** The arrow keys move the crosshair as the picture shows it; the page keys go through the slices. */
  move(viewport, key) {
    const { across, up, through } = planes[viewport.plane];
    const rightwards = byId("convention").value === "radiological" && across === 0 ? -1 : 1;
    const [axis, sign] = {
      ArrowLeft: [across, -rightwards], ArrowRight: [across, rightwards], ArrowDown: [up, -1], ArrowUp: [up, 1],
      PageDown: [through, -1], PageUp: [through, 1],
    }[key] || [];
    if (axis === undefined) return false;
    viewport.step(...[0, 1, 2].map((each) => (each === axis ? sign : 0)));
    return true;
  }

  command(viewport, key) {
    const zoomBy = (factor) => {
      const [x, y, z, scale] = viewport.niivue.scene.pan2Dxyzmm;
      for (const each of this.shown) each.zoom([x, y, z, scale * factor]);
    };
    const toggled = (id, first, second) => (byId(id).value === first ? second : first);
    const names = Object.keys(presets);
    const commands = {
      "home": () => this.goToPeak(), "0": () => viewport.resetWindow(), "escape": () => this.resetView(),
      "a": () => this.setPlane("axial"), "c": () => this.setPlane("coronal"), "s": () => this.setPlane("sagittal"), "t": () => this.setPlane("three"),
      "r": () => this.setTool(toggled("tool", "crosshair", "ruler")), "w": () => this.setTool(toggled("tool", "crosshair", "window")),
      "m": () => !byId("slab").disabled && this.setSlab(toggled("slab", "", usualSlab)),
      "v": () => this.setConvention(toggled("convention", "radiological", "neurological")),
      "o": () => { byId("opacity").value = Number(byId("opacity").value) ? 0 : 0.7; this.paint(); },
      "+": () => zoomBy(1.25), "-": () => zoomBy(0.8),
      ...Object.fromEntries(names.map((name, index) => [String(index + 1), () => viewport.usePreset(name)])),
    };
    if (!(key in commands)) return false;
    commands[key]();
    return true;
  }
}

/** Alignment of the images; empty if there is none: no explanation, or a prediction of an earlier release. */
async function alignmentOf(path, attribution) {
  if (!attribution) return {};
  try {
    return await get(`${path}/alignment.json`);
  } catch (problem) {
    if (problem.status === 404) return {};
    throw problem;
  }
}

/** Show the images of a prediction; without any image that can be shown, the viewer stays hidden. */
export async function showViewer(path, prediction) {
  const { attribution } = prediction;
  try {
    const viewer = new Viewer(path, prediction, await alignmentOf(path, attribution));
    if (!viewer.channels.length) return;
    byId("viewer-panel").hidden = false;
    byId("stills").hidden = !attribution;
    if (attribution) offerStills(path, attribution);
    await viewer.open();
  } catch (problem) {
    byId("viewer-panel").hidden = false;
    for (const part of byId("viewer-panel").querySelectorAll(".viewports, .controls, .viewer-only")) part.hidden = true;
    byId("stills").open = true;
    showProblem(byId("viewer-problem"), { title: t("The viewer could not start."),
      message: `${problem.message || problem}${attribution ? ` ${t("The figures below show the same images.")}` : ""}` });
  }
}
