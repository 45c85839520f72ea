// The panels' own words in the editor's language: English as the code has it, or what words/<language>.json says in its place.
import { api } from "../../scripts/api.js";

const LANGUAGES = ["zh"]; // besides English

const words = await load(await language());

/** The text in the editor's language. As a tag of a template, whose values stand where that language wants them. */
export function say(text, ...values) {
  const english = typeof text === "string" ? text : text.reduce((all, part, i) => `${all}{${i - 1}}${part}`);
  return (words[english] ?? english).replace(/\{(\d)\}/g, (_, i) => values[i]);
}

/** What was chosen in the editor's settings, else the browser's own, as the editor takes it. */
async function language() {
  const chosen = await api.getSetting("Comfy.Locale").catch(() => null); // editors of old have no such setting, and some refuse
  return chosen || navigator.language.split("-")[0];
}

async function load(name) {
  if (!LANGUAGES.includes(name)) return {};
  const answer = await fetch(new URL(`./words/${name}.json`, import.meta.url));
  if (answer.ok) return answer.json();
  console.warn(`ComfyUI-FewStep: its words in "${name}" did not come (${answer.status}); they are English.`);
  return {};
}
