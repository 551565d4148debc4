// The texts of the page. `texts.json` holds them all, in each language.

const NAME = "language";
const CHINESE = /^zh\b/i;

const table = await (await fetch("/_sandbox/page/texts.json")).json();

/** "en" or "zh": what was chosen on this page, or the browser's first language of the two. */
export const language = chosen() ?? (navigator.languages.map(known).find(Boolean) ?? "en");

const other = language === "en" ? "zh" : "en";

function known(tag) {
  if (CHINESE.test(tag)) return "zh";
  return /^en\b/i.test(tag) ? "en" : null;
}

function chosen() {
  try {
    const found = localStorage.getItem(NAME);
    return found in table ? found : null;
  } catch {
    // The browser keeps nothing for this page.
    return null;
  }
}

/** The text of a key; each `{name}` in it takes the value of that name. */
export function t(key, values = {}) {
  const text = table[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const figure = (n) => n.toLocaleString(language === "zh" ? "zh-CN" : "en");

/** The text for so many: `key_one` or `key_many`, with the number as `{n}`. */
export const counted = (key, n) => t(`${key}_${n === 1 ? "one" : "many"}`, { n: figure(n) });

/** Fill in the texts of the page's own elements, and make the switch to the other language. */
export function prepareTexts() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = t(one.dataset.text);
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", t(one.dataset.label));
  for (const one of document.querySelectorAll("[data-placeholder]")) one.placeholder = t(one.dataset.placeholder);
  for (const one of document.querySelectorAll("[data-short]")) one.dataset.short = t(one.dataset.short);
  const button = document.getElementById("language");
  button.lang = other === "zh" ? "zh-CN" : "en";
  button.addEventListener("click", () => {
    try {
      localStorage.setItem(NAME, other);
    } catch {
      // Without it the page stays in the browser's language.
    }
    location.reload();
  });
}
