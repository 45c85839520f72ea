// The steps of a schedule, a recipe or a method's student: what the network is told at each, and a picture of how the noise falls.
import { STYLE, define, figure, make, markLaidOut } from "./fewstep_elements.js";
import { ask } from "./fewstep_service.js";
import { say } from "./fewstep_words.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 70;
const MARGIN = 8;
const MILLISECONDS_TO_ASK_AGAIN = 5000;

const OWN_STYLE = `
  :host { display: flex; flex-direction: column; gap: 0.3em; }
  label { flex-wrap: nowrap; white-space: nowrap; } select { flex: 1; min-width: 0; }
  svg { width: 100%; height: 3.6em; flex: none; } polyline { fill: none; stroke: var(--student); stroke-width: 1.5; }
  circle { fill: var(--student); }
  .steps { flex: 1; min-height: 3em; overflow: auto; } :host([laid-out]) .steps { max-height: 22em; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { text-align: right; padding: 0 0.6em; } th { position: sticky; top: 0; background: var(--ground); font-weight: normal; color: var(--soft); }
  .error { white-space: pre-wrap; }
`;

class Schedule extends HTMLElement {
  #asked = null;
  #asking = null;

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.choice = make("select", { aria: { label: say("Kind of model that the schedule is shown for") }, on: { change: () => this.onchoice?.(this.choice.value) } });
    this.about = make("div", { className: "soft" });
    this.picture = document.createElementNS(SVG, "svg");
    this.picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.picture.setAttribute("preserveAspectRatio", "none");
    this.picture.setAttribute("aria-hidden", "true");
    this.steps = make("div", { className: "steps", tabIndex: 0, aria: { label: say("Timesteps and noise levels of the steps") }, role: "group" });
    this.error = make("div", { className: "error", role: "status" });
    const chosen = make("label", { className: "row soft" }, say("shown for "), this.choice);
    this.stages = make("div");
    this.shown = [chosen, this.about, this.stages, this.picture, this.steps];
    this.choosing = chosen;
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), ...this.shown, this.error);
  }

  /** Called with the kind of model that was chosen. */
  onchoice = null;

  connectedCallback() {
    markLaidOut(this);
  }

  disconnectedCallback() {
    this.#asking?.abort();
    this.#asked = null;
  }

  /** Shows what a route answers to these inputs; asks only when they have changed. choosable: whether the kind of model is free. */
  async show(route, inputs, { choosable, note = "" }) {
    const question = `${route}?${new URLSearchParams(inputs)}`;
    const asked = JSON.stringify([question, choosable, note]);
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.#asking?.abort();
    const { signal } = (this.#asking = new AbortController());
    try {
      const told = await ask(question, { signal });
      if (!signal.aborted) this.#draw(told, { choosable, note });
    } catch (error) {
      if (!signal.aborted) this.#refuse(error.message, choosable);
      setTimeout(() => signal.aborted || (this.#asked = null), MILLISECONDS_TO_ASK_AGAIN); // the server may be back
    }
  }

  /** A picture in SVG has no property hidden. */
  #showOnly(isShown) {
    for (const element of this.shown) element.toggleAttribute("hidden", !isShown(element));
  }

  #refuse(message, choosable) {
    this.#showOnly((element) => element === this.choosing && choosable && this.choice.options.length > 0);
    this.error.textContent = message;
  }

  #draw(told, { choosable, note }) {
    this.#showOnly((element) => element !== this.choosing || choosable);
    this.error.textContent = "";
    this.#drawChoice(told);
    this.about.textContent = [choosable ? "" : say`For ${told.models[told.model]}.`, ...(told.told ?? []), note].filter(Boolean).join(" ");
    this.about.title = told.source ?? "";
    this.stages.textContent = training(told.stages ?? []);
    this.#drawPicture(told.sigmas);
    this.steps.replaceChildren(table(told));
  }

  #drawChoice({ model, models }) {
    const options = Object.entries(models).map(([value, textContent]) => make("option", { value, textContent }));
    const isSame = (option, i) => option.value === this.choice.options[i].value;
    if (this.choice.options.length !== options.length || !options.every(isSame)) this.choice.replaceChildren(...options);
    this.choice.value = model;
  }

  /** Noise over steps; on a log scale where it spans more than a tenfold, the final 0 at the bottom. */
  #drawPicture(sigmas) {
    const levels = sigmas.slice(0, -1);
    const scale = levels[0] > 1 ? Math.log : (value) => value;
    const [low, high] = [scale(Math.min(...levels)), scale(levels[0])];
    const y = (sigma, last) => (last ? 1 : high > low ? (0.85 * (high - scale(sigma))) / (high - low) : 0);
    const points = sigmas.map((sigma, i) => [
      MARGIN + ((WIDTH - 2 * MARGIN) * i) / (sigmas.length - 1),
      MARGIN + (HEIGHT - 2 * MARGIN) * y(sigma, i === sigmas.length - 1),
    ]);
    this.picture.replaceChildren(svg("polyline", { points: points.map((point) => point.join()).join(" ") }),
      ...(points.length > 65 ? [] : points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3 }))));
  }
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** What a method trains, in words. */
function training(stages) {
  const iterations = stages.reduce((sum, stage) => sum + stage.iterations, 0);
  return stages.length ? say`Trains ${stages.map(({ name }) => name).join(", ")}: ${iterations} iterations. The student's steps:` : "";
}

function table({ sigmas, timesteps }) {
  const row = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, { textContent: text })));
  const head = row("th", ["step", ...(timesteps ? ["timestep"] : []), "noise from", "to"].map((name) => say(name)));
  const rows = sigmas.slice(0, -1).map((sigma, i) =>
    row("td", [i + 1, ...(timesteps ? [figure(timesteps[i])] : []), figure(sigma), figure(sigmas[i + 1])]));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

define("fewstep-schedule", Schedule);
