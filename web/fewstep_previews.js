// The preview pictures of a run, as a slider over its training time.
import "./fewstep_compare.js";
import { STYLE, define, make } from "./fewstep_elements.js";
import { enlarge, previewsOf } from "./fewstep_enlarged.js";
import { previewUrl } from "./fewstep_service.js";
import { say } from "./fewstep_words.js";

const OWN_STYLE = `
  :host { display: flex; flex-direction: column; gap: 0.3em; min-height: 0; }
  fewstep-compare { flex: 1; min-height: 0; }
  input { flex: 1; min-width: 6em; accent-color: var(--student); }
`;

class Previews extends HTMLElement {
  #run = "";
  #iterations = [];

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.picture = make("fewstep-compare", { onenlarge: () => enlarge(previewsOf(this.#run, this.#iterations), Number(this.time.value)) });
    this.time = make("input", { type: "range", min: 0, value: 0, on: { input: () => this.#show() },
      aria: { label: say("Training time: which preview is shown") } });
    this.when = make("output", { className: "soft" });
    this.overlay = make("button", { type: "button", textContent: say("One over the other"), aria: { pressed: "false" },
      on: { click: () => this.#toggle() } });
    this.nothing = make("p", { className: "soft", textContent: say("No pictures yet. They come with every checkpoint when a VAE is connected.") });
    this.row = make("div", { className: "row" }, this.time, this.when, this.overlay);
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.nothing, this.picture, this.row);
  }

  /** Shows the newest picture until somebody looks at an older one. */
  update(run, iterations) {
    const newest = run !== this.#run || Number(this.time.value) >= this.#iterations.length - 1;
    this.#run = run;
    this.#iterations = iterations;
    this.time.max = Math.max(iterations.length - 1, 0);
    if (newest) this.time.value = this.time.max;
    this.nothing.hidden = iterations.length > 0;
    this.picture.hidden = this.row.hidden = iterations.length === 0;
    this.#show();
  }

  #show() {
    const iteration = this.#iterations[Number(this.time.value)];
    if (iteration === undefined) return;
    this.when.value = say`iteration ${iteration}`;
    this.time.setAttribute("aria-valuetext", this.when.value);
    this.picture.address = previewUrl(this.#run, iteration);
  }

  #toggle() {
    this.picture.overlaid = !this.picture.overlaid;
    this.overlay.setAttribute("aria-pressed", this.picture.overlaid);
  }
}

define("fewstep-previews", Previews);
