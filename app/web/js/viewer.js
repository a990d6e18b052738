// The images in three planes with an attribution overlay, on NiiVue.
//
// Everything shown lies in MNI space: `aligned-<modality>` as the image, `aligned-attribution-<modality>` on top.
// The overlay's threshold is a share of its own peak, so that quiet maps can be looked at too.

import { headers } from "./api.js";
import { byId, el } from "./dom.js";

const windows = { ncct: [0, 80], cta: [-50, 350], vessels: [0, 1], tmax: [0, 16], rcbf: [0, 1.6] };

function peak(volume) {
  return Math.max(Math.abs(volume.global_min), Math.abs(volume.global_max)) || 1;
}

/** @param maps names from the prediction's attribution; what is missing is left out of the choice. */
export async function showViewer(path, maps) {
  const bases = maps.filter((name) => /^aligned-(?!attribution)/.test(name));
  const overlays = maps.filter((name) => name.startsWith("aligned-attribution-"));
  if (!bases.length) return;
  const option = (prefix) => (name) => el("option", { value: name }, name.replace(prefix, ""));
  byId("base").replaceChildren(...bases.map(option("aligned-")));
  byId("overlay").replaceChildren(...overlays.map(option("aligned-attribution-")), el("option", { value: "" }, "none"));
  byId("viewer-panel").hidden = false;

  const viewer = new globalThis.niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.62, 0, 0.8], isRadiologicalConvention: false,
    show3Dcrosshair: false, logLevel: "error",
  });
  viewer.onLocationChange = (place) => { byId("location").textContent = `MNI mm and values: ${place.string}`; };
  await viewer.attachToCanvas(byId("canvas"));
  viewer.setMultiplanarLayout(3);
  viewer.opts.multiplanarForceRender = false;

  const url = (name) => ({ url: `${path}/maps/${name}.nii.gz`, name: `${name}.nii.gz`, headers: headers() });

  function paint() {
    const overlay = viewer.volumes[1];
    if (!overlay) return;
    const most = peak(overlay);
    overlay.cal_min = Number(byId("threshold").value) * most;
    overlay.cal_max = most;
    overlay.cal_minNeg = -most;
    overlay.cal_maxNeg = -overlay.cal_min;
    overlay.opacity = Number(byId("opacity").value);
    viewer.updateGLVolume();
  }

  async function load() {
    const base = byId("base").value;
    const overlay = byId("overlay").value;
    const [low, high] = windows[base.replace("aligned-", "")] || [undefined, undefined];
    const volumes = [{ ...url(base), colormap: "gray", cal_min: low, cal_max: high }];
    if (overlay) volumes.push({ ...url(overlay), colormap: "warm", colormapNegative: "winter", opacity: 0.7 });
    await viewer.loadVolumes(volumes);
    paint();
    byId("canvas").dataset.loaded = `${base} ${overlay}`;
  }

  byId("base").onchange = load;
  byId("overlay").onchange = load;
  byId("opacity").oninput = paint;
  byId("threshold").oninput = paint;
  await load();
}
