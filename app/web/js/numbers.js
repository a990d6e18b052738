// One rule for the numbers that people type: the decimal sign is a point or a comma, and nothing groups the digits.

const plain = /^[+-]?\d+$/;
const decimal = /^[+-]?\d*[.,]\d+$/;
const grouped = /^[+-]?[1-9]\d{0,2}[.,]\d{3}$/; // 1.234 and 1,234 are 1234 to one reader and 1.234 to another
const digits = /^[+-]?[\d.,'’\s\u00a0\u202f]*\d[\d.,'’\s\u00a0\u202f]*$/;

/** Read a typed number. @returns `{}` for an empty text, `{ value }`, or `{ fault }`: ambiguous, grouped or no-number */
export function readNumber(text) {
  const written = text.trim().replace(/^[−–]/, "-");
  if (!written) return {};
  if (grouped.test(written)) return { fault: "ambiguous" };
  if (plain.test(written) || decimal.test(written)) return { value: Number(written.replace(",", ".")) };
  return { fault: digits.test(written) ? "grouped" : "no-number" };
}

/** Write a number so that `readNumber` reads it again. */
export function writeNumber(value) {
  const written = value.toLocaleString("en", { useGrouping: false, maximumFractionDigits: 20 });
  return grouped.test(written) ? `${written}0` : written;
}
