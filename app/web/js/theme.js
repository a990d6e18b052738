// Light or dark page: as the system prefers, or as the reader has chosen; the browser keeps the choice.
// A plain script in the head of the page, so that a dark page is never white first.

(() => {
  const stored = "rlvo-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem(stored) || "system";
  const show = () => {
    const theme = chosen() === "system" ? (dark.matches ? "dark" : "light") : chosen();
    document.documentElement.dataset.theme = theme;
  };
  show();
  dark.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = chosen();
    select.addEventListener("change", () => {
      localStorage.setItem(stored, select.value);
      show();
    });
  });
})();
