// Texts of the pages in the language of the reader.
//
// The English text is the key. `texts/<language>.json` maps it to the text of one other language; a text that it lacks
// stays English. A new language is one file there and one line in `languages`.

const stored = "rlvo-language";

export const languages = { en: "English", es: "Español" };

/** The language that the reader has chosen, else the first one of the browser that is known, else English. */
export const language = [localStorage.getItem(stored), ...navigator.languages.map((tag) => tag.slice(0, 2))]
  .find((tag) => tag in languages) || "en";

async function load() {
  if (language === "en") return {};
  try {
    return await (await fetch(`/static/texts/${language}.json`)).json();
  } catch {
    return {}; // an English page is better than none
  }
}

const catalogue = await load();

/** Return a text in the language of the page; `{name}` is replaced by the value of that name. */
export function t(text, values = {}) {
  return (catalogue[text] || text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

const attributes = ["aria-label", "placeholder", "title"];

/** Translate the texts that stand in the HTML file, and offer the other languages. */
export function translatePage() {
  document.documentElement.lang = language;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const said = node.data.trim().replace(/\s+/g, " ");
    if (catalogue[said]) node.data = node.data.replace(/^(\s*)[^]*?(\s*)$/, (_, before, after) => before + catalogue[said] + after);
  }
  for (const name of attributes) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      element.setAttribute(name, t(element.getAttribute(name)));
    }
  }
  const select = document.getElementById("language");
  for (const [tag, name] of Object.entries(languages)) select.append(new Option(name, tag, false, tag === language));
  select.onchange = () => {
    localStorage.setItem(stored, select.value);
    location.reload();
  };
}
