// A preview picture, teacher above and student below: both rows, or one over the other under a slider.
import { STYLE, define, make } from "./fewstep_elements.js";
import { enlarge } from "./fewstep_enlarged.js";
import { say } from "./fewstep_words.js";

const OWN_STYLE = `
  :host { display: flex; flex-direction: column; gap: 0.3em; min-height: 0; }
  .stage { position: relative; flex: 1; min-height: 0; display: grid; place-items: center; overflow: hidden; width: 100%;
    padding: 0; border: 0; background: none; cursor: zoom-in; }
  .both { max-width: 100%; max-height: 100%; width: 100%; object-fit: contain; }
  .over { position: relative; width: 100%; }
  .half { position: absolute; inset: 0; background-size: 100% 200%; background-repeat: no-repeat; }
  .teacher { background-position: top; } .student { background-position: bottom; }
  .line { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--student); pointer-events: none; }
  .pixels { image-rendering: pixelated; }
  input { width: 100%; accent-color: var(--student); }
  .words { display: flex; justify-content: space-between; }
`;

class Compare extends HTMLElement {
  #address = "";
  #over = false;

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.both = make("img", { className: "both", alt: say("Above the teacher's pictures, below the student's, from the same noise") });
    this.both.addEventListener("load", () => this.#fitPicture());
    this.halves = ["teacher", "student"].map((name) => make("div", { className: `half ${name}` }));
    this.line = make("div", { className: "line" });
    this.over = make("div", { className: "over", hidden: true }, ...this.halves, this.line);
    this.slider = make("input", { type: "range", min: 0, max: 100, value: 50, on: { input: () => this.#divide() },
      aria: { label: say("Where the teacher's picture ends and the student's begins") } });
    this.figure = make("div", { aria: { live: "polite" } });
    this.words = make("div", { className: "words soft" }, make("span", {}, say("teacher")), make("span", {}, say("student")));
    this.dividing = make("div", { hidden: true }, this.slider, this.words, this.figure);
    this.stage = make("button", { type: "button", className: "stage", title: say("Enlarge"), on: { click: () => this.onenlarge() },
      aria: { label: say("Enlarge: teacher and student side by side") } }, this.both, this.over);
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.stage, this.dividing);
    this.#divide();
  }

  /** What a click on the pictures does: they are shown in the whole window. */
  onenlarge = () => enlarge([{ address: this.#address, label: "", about: async () => ({ columns: null, prompts: null }) }]);

  /** The picture's address. */
  set address(address) {
    if (address === this.#address) return;
    this.#address = address;
    this.both.src = address;
    for (const half of this.halves) half.style.backgroundImage = `url("${address}")`;
  }

  get address() {
    return this.#address;
  }

  /** [width, height] of both pictures together where it is known before they come: what lies below stays where it is then. */
  set size([width, height]) {
    this.over.style.aspectRatio = `${width} / ${height / 2}`;
  }

  /** What stands below the pictures, a figure say. */
  set said(text) {
    this.figure.textContent = text;
  }

  /** Whether the pictures lie over each other. */
  set overlaid(over) {
    this.#over = over;
    this.both.hidden = over;
    this.over.hidden = this.dividing.hidden = !over;
  }

  get overlaid() {
    return this.#over;
  }

  #fitPicture() {
    const { naturalWidth, naturalHeight } = this.both;
    this.size = [naturalWidth, naturalHeight];
    const small = naturalWidth < 1000; // enlarged, it shows its pixels as they are
    for (const element of [this.both, ...this.halves]) element.classList.toggle("pixels", small);
  }

  #divide() {
    const at = this.slider.value;
    this.halves[1].style.clipPath = `inset(0 0 0 ${at}%)`;
    this.line.style.left = `calc(${at}% - 1px)`;
  }
}

define("fewstep-compare", Compare);
