// Shows what a node says in words, a command or a file's place, on the node itself, with a button that copies it.
import { app } from "../../scripts/app.js";
import { AROUND, STYLE, addElement, copied, define, every, fit, make, showAfterRunning, textScale, whileThere } from "./fewstep_elements.js";
import { EVERY, PLAN, isOf, subscribe } from "./fewstep_service.js";
import { valueSet } from "./fewstep_wires.js";
import { say } from "./fewstep_words.js";

const NODES = [
  ...["FewStepMakeItFast", "FewStepApplyRecipe", "FewStepWriteRun", "FewStepSaveStudent", "FewStepSaveStudentLoRA"],
  ...["FewStepImageFolder", "FewStepClipFolder", "FewStepSoundFolder"],
];
const HEIGHT = 70; // at least
const MOST = 400; // beyond it scrolls
const BORDERS = 4;
const WIDTH = 420;
const MILLISECONDS_BETWEEN_LOOKS = 300;
const OF_ANY_PLAN = ["run_name", "do", "seed", "control_after_generate"]; // settings that a plan does not depend on

const OWN_STYLE = `
  .said { display: flex; gap: 0.5em; align-items: flex-start; height: 100%; }
  textarea { flex: 1; height: 100%; resize: none; font-family: monospace; font-size: inherit; color: var(--ink); background: var(--ground);
    border: 1px solid var(--line); }
`;

class Text extends HTMLElement {
  #text = "";
  #outdated = false;

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.area = make("textarea", { readOnly: true, rows: 4, aria: { label: say("What this node says") } });
    this.copy = make("button", { type: "button", textContent: say("Copy"), on: { click: () => this.#copy() } });
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), make("div", { className: "said" }, this.area, this.copy));
  }

  set text(text) {
    this.#text = text;
    this.#draw();
  }

  get text() {
    return this.#text;
  }

  /** Whether it is of other settings than those that are set now. */
  set outdated(outdated) {
    if (outdated === this.#outdated) return;
    this.#outdated = outdated;
    this.#draw();
  }

  get outdated() {
    return this.#outdated;
  }

  #draw() {
    this.area.value = this.#outdated ? `${say("Of other settings than are set now:")}\n\n${this.#text}` : this.#text;
    this.grow?.();
  }

  /** The height in which all of the text is seen, in the width that it has now. */
  get needed() {
    this.area.style.minHeight = this.area.style.height = "0";
    const inside = this.area.scrollHeight;
    this.area.style.height = "";
    const needed = Math.min(Math.max(inside + BORDERS, HEIGHT), MOST);
    this.area.style.minHeight = `${needed}px`;
    return needed;
  }

  async #copy() {
    this.area.select();
    this.copy.textContent = (await copied(this.text)) || document.execCommand("copy") ? say("Copied") : say("Press Ctrl-C");
    setTimeout(() => (this.copy.textContent = say("Copy")), 1500);
  }
}

function addText(node) {
  const text = make("fewstep-text");
  let height = HEIGHT;
  addElement(node, "said", text, { height: () => (height + AROUND) / textScale() });
  fit(node, WIDTH);
  const grow = () => {
    if (!text.isConnected || text.needed === height) return;
    height = text.needed;
    fit(node);
  };
  new ResizeObserver(grow).observe(text); // once it is laid out, and when the node is made wider or narrower
  text.grow = grow;
  return text;
}

/** Node and plan -> the settings that it is of. */
const planned = new Map();
const planOf = (node) => `${node.id} ${node.fewstepText?.text}`;

function settings(node) {
  const chosen = node.widgets.filter(({ name, serialize }) => serialize !== false && !OF_ANY_PLAN.includes(name));
  return JSON.stringify(chosen.map((own) => [own.name, valueSet(node, own)]));
}

/** What trains for hours says beforehand what it will take, and whether that was of other settings than those that are set now. */
function showPlans(node) {
  whileThere(node, () => subscribe(EVERY, (kind, data) => {
    if (kind !== PLAN || !isOf(data, node)) return;
    show(node, { text: data.plan });
    planned.set(planOf(node), settings(node));
  }));
  every(MILLISECONDS_BETWEEN_LOOKS, node, () => {
    const of = planned.get(planOf(node));
    if (node.fewstepText) node.fewstepText.outdated = of !== undefined && of !== settings(node);
  });
}

function show(node, { text }) {
  node.fewstepText ??= addText(node);
  node.fewstepText.text = text.join("\n");
}

define("fewstep-text", Text);
app.registerExtension({
  ...showAfterRunning("comfyuifewstep.Text", NODES, show),
  nodeCreated(node) {
    if (node.comfyClass === "FewStepMakeItFast") showPlans(node);
  },
});
