// Shows what a node says in words, a command or a file's place, on the node itself, with a button that copies it.
import { app } from "../../scripts/app.js";
import { STYLE, addElement, define, fit, make, showAfterRunning } from "./fewstep_elements.js";

const NODES = [
  ...["FewStepMakeItFast", "FewStepApplyRecipe", "FewStepWriteRun", "FewStepSaveStudent", "FewStepSaveStudentLoRA"],
  ...["FewStepImageFolder", "FewStepClipFolder", "FewStepSoundFolder"],
];
const HEIGHT = 70;
const WIDTH = 420;

const OWN_STYLE = `
  .said { display: flex; gap: 0.5em; align-items: flex-start; height: 100%; }
  textarea { flex: 1; height: 100%; resize: none; font-family: monospace; font-size: inherit; color: var(--ink); background: var(--ground);
    border: 1px solid var(--line); }
`;

class Text extends HTMLElement {
  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.area = make("textarea", { readOnly: true, rows: 4, aria: { label: "What this node says" } });
    this.copy = make("button", { type: "button", textContent: "Copy", on: { click: () => this.#copy() } });
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), make("div", { className: "said" }, this.area, this.copy));
  }

  set text(text) {
    this.area.value = text;
  }

  get text() {
    return this.area.value;
  }

  async #copy() {
    this.area.select();
    // the clipboard is closed to pages that come over plain HTTP from another machine
    const copied = navigator.clipboard ? await navigator.clipboard.writeText(this.text).then(() => true, () => false) : false;
    this.copy.textContent = copied || document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (this.copy.textContent = "Copy"), 1500);
  }
}

function addText(node) {
  const text = make("fewstep-text");
  addElement(node, "said", text, { height: () => HEIGHT });
  node.size[0] = Math.max(node.size[0], WIDTH);
  fit(node);
  return text;
}

function show(node, { text }) {
  node.fewstepText ??= addText(node);
  node.fewstepText.text = text.join("\n");
}

define("fewstep-text", Text);
app.registerExtension(showAfterRunning("comfyuifewstep.Text", NODES, show));
