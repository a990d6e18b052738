// Affine maps (4, 4) between spaces in millimetres, as nested arrays in row order.

export const identity = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];

/** The map that applies `b` first, then `a`. */
export const multiply = (a, b) => a.map((row) => b[0].map((_, column) =>
  row.reduce((sum, value, index) => sum + value * b[index][column], 0)));

/** Map a point (x, y, z). */
export const apply = (matrix, point) => matrix.slice(0, 3).map((row) =>
  row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

/** The inverse of an affine map, by the cofactors of its linear part. */
export function invert(matrix) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = matrix;
  const size = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / size));
  return [...rows.map((row) => [...row, -(row[0] * x + row[1] * y + row[2] * z)]), [0, 0, 0, 1]];
}
