// The panels' own words in the editor's language: English as the code has it, or what words/<language>.json says in its place.
import { app } from "../../scripts/app.js";

const LANGUAGES = ["zh"]; // besides English

const words = await load(app.ui.settings.getSettingValue("Comfy.Locale")); // which editors of old, in English, do not have

/** The text in the editor's language. As a tag of a template, whose values stand where that language wants them. */
export function say(text, ...values) {
  const english = typeof text === "string" ? text : text.reduce((all, part, i) => `${all}{${i - 1}}${part}`);
  return (words[english] ?? english).replace(/\{(\d)\}/g, (_, i) => values[i]);
}

/** What the training itself calls methods and stages. */
const NAMES = [
  ...["progressive distillation", "guidance distillation", "consistency distillation", "consistency training", "distribution matching"],
  ...["{0} to {1} steps", "guidance {0} in one forward", "guidance {0} to {1} in one forward", "consistency over {0} levels"],
  ...["consistency without a teacher", "matching in {0} steps"],
];

/** The name that a run has for its method or for a stage, in the editor's language; anything else as it is. */
export function sayName(name) {
  const numbers = [];
  const plain = name.replaceAll("_", " ");
  const english = plain.replace(/\d+(\.\d+)?/g, (number) => `{${numbers.push(number) - 1}}`);
  return NAMES.includes(english) ? say(english, ...numbers) : plain;
}

async function load(name) {
  if (!LANGUAGES.includes(name)) return {};
  try {
    const answer = await fetch(new URL(`./words/${name}.json`, import.meta.url));
    if (answer.ok) return await answer.json();
    throw new Error(answer.status);
  } catch (error) {
    console.warn(`ComfyUI-FewStep: its words in "${name}" did not come (${error.message}); they are English.`);
    return {};
  }
}
