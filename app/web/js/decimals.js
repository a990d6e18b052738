// A text field for one decimal number: what is typed is shown back as it is read, or refused with the reason.

import { el } from "./dom.js";
import { readNumber, writeNumber } from "./numbers.js";
import { language, t } from "./texts.js";

const faults = {
  "ambiguous": "Three digits after the sign can be thousands. Write 1234, or 1.2340 with a fourth decimal.",
  "grouped": "Write the number without thousands separators and with one decimal sign, such as 1234.5 or 1234,5.",
  "no-number": "Write a number, such as 3.5 or 3,5.",
};

const local = (value) => value.toLocaleString(language, { useGrouping: false, maximumFractionDigits: 10 });

/** A number with its unit, as it is read. */
export const quantity = (value, unit) => (unit && unit !== "1" ? `${local(value)} ${unit}` : local(value));

function read(text, { minimum, maximum, integer, unit }) {
  const { value, fault } = readNumber(text);
  if (fault) return { fault: t(faults[fault]) };
  if (value === undefined) return {};
  if (integer && !Number.isInteger(value)) return { fault: t("Write a whole number.") };
  if (minimum !== undefined && value < minimum) return { fault: t("The least possible value is {limit}.", { limit: quantity(minimum, unit) }) };
  if (maximum !== undefined && value > maximum) return { fault: t("The largest possible value is {limit}.", { limit: quantity(maximum, unit) }) };
  return { value };
}

/**
 * Make a text input read decimal numbers. The browser does not send a form while a field has a fault.
 * @param limits {minimum, maximum, integer, unit}; @returns {value(), show(number)}
 */
export function decimalField(input, limits = {}) {
  const echo = el("output", { class: "echo" });
  input.after(echo);
  const check = () => {
    const { value, fault } = read(input.value, limits);
    input.setCustomValidity(fault || "");
    input.setAttribute("aria-invalid", Boolean(fault));
    echo.classList.toggle("fault", Boolean(fault));
    echo.textContent = fault || (value === undefined ? "" : `= ${quantity(value, limits.unit)}`);
    return value;
  };
  input.addEventListener("input", check);
  input.addEventListener("change", check); // what fills in forms may send this event only
  return {
    value: check,
    show(number) {
      input.value = typeof number === "number" ? writeNumber(number) : "";
      check();
    },
  };
}
