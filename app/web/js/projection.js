// Maximum intensity projection of slabs: each voxel becomes the largest one of the slab around its slice.

/** Largest value over `count` voxels along the axis, from each voxel upwards, in place; it doubles the window. */
function runningMaximum(values, block, step, count) {
  const widen = (shift) => {
    for (let start = 0; start < values.length; start += block) {
      const end = start + block - shift * step;
      for (let at = start; at < end; at += 1) {
        const other = values[at + shift * step];
        if (other > values[at]) values[at] = other;
      }
    }
  };
  let width = 1;
  for (; 2 * width <= count; width *= 2) widen(width);
  if (width < count) widen(count - width);
}

/** Project slabs of a volume along one axis.
 *
 * @param values voxels of the volume, the first axis fastest.
 * @param shape number of voxels along each of the three axes.
 * @param axis 0, 1 or 2.
 * @param count slices in a slab; at the ends of the volume the slab stays inside.
 * @returns a new array of the same kind and size.
 */
export function slabs(values, shape, axis, count) {
  const step = shape.slice(0, axis).reduce((product, size) => product * size, 1);
  const length = shape[axis];
  const block = step * length;
  const thick = Math.max(1, Math.min(count, length));
  const running = values.slice(0, shape[0] * shape[1] * shape[2]);
  runningMaximum(running, block, step, thick);
  const centred = new values.constructor(running.length);
  const half = Math.floor((thick - 1) / 2);
  for (let start = 0; start < running.length; start += block) {
    for (let slice = 0; slice < length; slice += 1) {
      const from = start + step * Math.max(0, Math.min(slice - half, length - thick));
      centred.set(running.subarray(from, from + step), start + step * slice);
    }
  }
  return centred;
}
