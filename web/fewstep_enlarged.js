// Preview pictures in the whole window: teacher and student of one prompt side by side, by checkpoint.
import { STYLE, define, keepKeys, make } from "./fewstep_elements.js";
import { fetchPreviewAbout, previewUrl } from "./fewstep_service.js";
import { say } from "./fewstep_words.js";

const OWN_STYLE = `
  :host { display: contents; }
  dialog { width: 96vw; height: 94vh; max-width: none; max-height: none; padding: 0.8em; color: var(--ink); background: var(--menu);
    border: 1px solid var(--line); border-radius: 6px; font: max(14px, 0.875rem)/1.4 system-ui, sans-serif; }
  dialog[open] { display: flex; flex-direction: column; gap: 0.6em; }
  h2 { font-size: 1em; margin: 0; flex: 1; overflow-wrap: anywhere; max-height: 6em; overflow: auto; }
  .pair { flex: 1; min-height: 0; display: flex; gap: 0.6em; }
  figure { flex: 1; min-width: 0; margin: 0; display: flex; flex-direction: column; } figcaption { color: var(--soft); }
  canvas { flex: 1; min-height: 0; max-width: 100%; object-fit: contain; } .pixels { image-rendering: pixelated; } a { color: inherit; }
  .time { flex: 1; } input { flex: 1; min-width: 8em; accent-color: var(--student); }
`;

class Enlarged extends HTMLElement {
  #pictures = [];
  #at = 0;
  #column = 0;
  #columns = 1;
  #prompts = null;
  #shown = 0;

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    keepKeys(this);
    const button = (text, click) => make("button", { type: "button", textContent: say(text), on: { click } });
    this.prompt = make("h2", { id: "prompt" });
    this.before = button("Previous", () => this.#turn(-1));
    this.after = button("Next", () => this.#turn(1));
    this.close = Object.assign(button("Close", () => this.dialog.close()), { autofocus: true });
    this.canvases = ["teacher", "student"].map((name) => make("canvas", { role: "img", aria: { label: say(name) } }));
    const pair = this.canvases.map((canvas) => make("figure", {}, make("figcaption", { textContent: canvas.ariaLabel }), canvas));
    this.time = make("input", { type: "range", min: 0, aria: { label: say("Checkpoint") }, on: { input: () => this.#show(Number(this.time.value)) } });
    this.when = make("output", { className: "soft" });
    this.whole = make("a", { target: "_blank", textContent: say("Whole picture in a tab of its own") });
    this.said = make("div", { role: "status" });
    this.timeRow = make("div", { className: "row time" }, this.time, this.when);
    this.dialog = make("dialog", { on: { close: () => this.remove(), keydown: (event) => this.#key(event) }, aria: { labelledby: "prompt" } },
      make("div", { className: "row" }, this.prompt, this.before, this.after, this.close), make("div", { className: "pair" }, ...pair),
      this.said, make("div", { className: "row" }, this.timeRow, this.whole));
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.dialog);
  }

  /** pictures: [{address, label, about()}], about giving {columns, prompts}. at: the first that is shown. */
  open(pictures, at) {
    this.#pictures = pictures;
    this.time.max = pictures.length - 1;
    this.time.value = at;
    this.timeRow.hidden = pictures.length < 2;
    this.dialog.showModal();
    this.#show(at);
  }

  async #show(at) {
    this.#at = at;
    const { address, label, about } = this.#pictures[at];
    const shown = ++this.#shown;
    this.when.value = label;
    this.time.setAttribute("aria-valuetext", label);
    this.whole.href = address;
    const picture = make("img", { src: address });
    try {
      const [said] = await Promise.all([about(), loaded(picture)]);
      if (shown === this.#shown) this.#draw(picture, said);
    } catch (error) {
      if (shown === this.#shown) this.said.textContent = error.message;
    }
  }

  #draw(picture, { columns, prompts }) {
    this.said.textContent = "";
    this.picture = picture;
    this.#columns = columns || 1;
    this.#prompts = prompts;
    this.#column = Math.min(this.#column, this.#columns - 1);
    this.#cut();
  }

  /** The column that is shown, each half in its own canvas at its full size. */
  #cut() {
    const [width, height] = [this.picture.naturalWidth / this.#columns, this.picture.naturalHeight / 2];
    const number = say`picture ${this.#column + 1} of ${this.#columns}`;
    const prompt = this.#prompts?.[this.#column] ?? (this.#columns > 1 ? say`Training samples, ${number}` : say("Teacher and student"));
    this.canvases.forEach((canvas, i) => {
      Object.assign(canvas, { width, height });
      canvas.classList.toggle("pixels", width < 256);
      canvas.setAttribute("aria-label", `${say(i ? "student" : "teacher")}: ${prompt}`);
      canvas.getContext("2d").drawImage(this.picture, this.#column * width, i * height, width, height, 0, 0, width, height);
    });
    this.prompt.textContent = prompt;
    this.before.hidden = this.after.hidden = this.#columns < 2;
  }

  /** After the last comes the first: no button is ever taken from under a finger. */
  #turn(by) {
    this.#column = (this.#column + by + this.#columns) % this.#columns;
    if (this.picture) this.#cut();
  }

  /** Arrows go from picture to picture; on the slider they go from checkpoint to checkpoint. */
  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.composedPath()[0] === this.time) return;
    event.preventDefault();
    this.#turn(by);
  }
}

/** When it has come. Not decode(), whose errors are in the browser's words. */
function loaded(picture) {
  return new Promise((resolve, reject) => {
    picture.onload = resolve;
    picture.onerror = () => reject(new Error(say("The picture could not be loaded.")));
  });
}

define("fewstep-enlarged", Enlarged);

/** Shows pictures, each teacher above student, in the whole window. What had the focus gets it back. */
export function enlarge(pictures, at = 0) {
  const shown = document.body.appendChild(make("fewstep-enlarged"));
  shown.open(pictures, at);
}

/** The previews of a run at these iterations, as enlarge takes them. */
export function previewsOf(run, iterations) {
  return iterations.map((iteration) => ({
    address: previewUrl(run, iteration), label: say`iteration ${iteration}`, about: () => fetchPreviewAbout(run, iteration),
  }));
}
