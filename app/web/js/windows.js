// Windows of CT (width and level in HU) and the range of other images.

/** Usual windows in neuroradiology: width, level. */
export const presets = {
  brain: { name: "Brain", width: 80, level: 40 },
  stroke: { name: "Stroke", width: 40, level: 40 },
  cta: { name: "CTA", width: 700, level: 250 },
  bone: { name: "Bone", width: 2500, level: 480 },
};

/** The window with which a CT is first shown. */
export const firstPreset = { ncct: "brain", cta: "cta" };

/** Black and white of images that are no CT. */
export const ranges = { vessels: [0, 1], intracranial: [0, 1], tmax: [0, 16], rcbf: [0, 1.6] };

export const units = { ncct: "HU", cta: "HU", tmax: "s" };

/** The name of the preset with these values, or "custom". */
export const presetOf = (width, level) =>
  Object.keys(presets).find((name) => presets[name].width === width && presets[name].level === level) || "custom";
