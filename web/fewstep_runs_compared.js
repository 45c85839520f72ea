// Runs beside each other: their losses in one chart, the settings that differ, and their newest pictures.
import "./fewstep_chart.js";
import { smoothed } from "./fewstep_chart.js";
import { CURVES, STYLE, define, distance, figure, make } from "./fewstep_elements.js";
import { enlarge, previewsOf } from "./fewstep_enlarged.js";
import { fetchRun, previewUrl } from "./fewstep_service.js";
import { say, sayName } from "./fewstep_words.js";

const OWN_STYLE = `
  :host { height: auto; display: grid; gap: 0.6em; }
  img { width: 100%; height: auto; image-rendering: pixelated; display: block; } figure { margin: 0; }
  figure button { padding: 0; border: 0; width: 100%; cursor: zoom-in; }
  table { border-collapse: collapse; width: 100%; } caption { text-align: left; font-weight: 600; }
  th, td { text-align: left; padding: 0.1em 0.4em; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; font-weight: normal; }
  td { min-width: 4.5em; } .number { white-space: nowrap; } th { color: var(--soft); overflow-wrap: normal; } .scroll { overflow: auto; }
`;

const APART = "distance from the teacher, percent";

/** Of settings that are something else beside how far a run is. */
const NAMES = { iterations: "iterations asked for" };

class Compared extends HTMLElement {
  #asking = null;
  #runs = [];
  #rows = [];

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.chart = make("fewstep-chart", { plotHeight: 12 });
    this.table = make("table");
    this.pictures = make("div");
    this.said = make("div", { role: "status" });
    const scrolled = make("div", { className: "scroll", tabIndex: 0, role: "group", aria: { label: say("Settings that differ") } }, this.table);
    this.saving = make("button", { type: "button", textContent: say("Save table as CSV"), title: say("One line for each run."), on: { click: () => this.#save() } });
    const row = make("div", { className: "row" }, this.saving);
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.said, this.chart, scrolled, row, this.pictures);
  }

  disconnectedCallback() {
    this.#asking?.abort();
    this.#asking = null;
  }

  /** runs: as the server lists them. What is asked of the same ones is heard to the end before it is asked anew. */
  async show(runs) {
    const same = String(runs.map(({ run }) => run)) === String(this.#runs.map(({ run }) => run));
    this.#runs = runs;
    if (same && this.#asking) return;
    this.#asking?.abort();
    const { signal } = (this.#asking = new AbortController());
    this.pictures.replaceChildren(...runs.filter((run) => run.preview !== null).map(picture));
    try {
      const told = await Promise.all(runs.map((run) => fetchRun(run.run, { signal })));
      if (signal.aborted) return;
      this.said.textContent = "";
      this.#rows = rows(runs, told);
      this.table.replaceChildren(make("caption", { textContent: say("What differs") }), ...this.#rows.map(tableRow));
      this.chart.draw(content(told));
    } catch (error) {
      if (!signal.aborted) this.said.textContent = error.message;
    }
    if (signal.aborted) return;
    this.#asking = null;
    if (this.#runs !== runs) this.show(this.#runs);
  }

  #save() {
    const address = URL.createObjectURL(new Blob([csv(this.#rows)], { type: "text/csv" }));
    make("a", { href: address, download: "fewstep runs.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000); // once the browser has it
  }
}

/** Lines over all iterations that any of them logged. */
function content(told) {
  const x = [...new Set(told.flatMap(({ curves }) => curves.iteration))].sort((one, other) => one - other);
  const lines = told.map(({ run, curves }, i) => {
    const at = new Map(curves.iteration.map((iteration, k) => [iteration, k]));
    const values = smoothed(curves.loss, curves.stage);
    const [colour, dash] = CURVES[i % CURVES.length];
    return { label: run, colour, dash, values: x.map((iteration) => values[at.get(iteration)] ?? null) };
  });
  return { x, stages: x.map(() => 0), names: {}, log: true, lines };
}

/** How each stands, and every setting that is not the same for all: [what, of the first run, of the second ...] each. */
function rows(runs, told) {
  const settings = runs.map(({ method, options, student, teacher }) => ({ method, ...options, ...student, teacher: teacher?.slice(0, 8) }));
  const names = [...new Set(settings.flatMap(Object.keys))].filter((name) => new Set(settings.map((one) => JSON.stringify(one[name]))).size > 1);
  return [
    ["run", ...runs.map(({ run }) => run)],
    ["last loss", ...runs.map(({ loss }) => figure(loss))],
    ["iterations done", ...told.map(({ iteration }) => String(iteration))],
    ...distances(runs),
    ...names.map((name) => [NAMES[name] ?? name.replaceAll("_", " "), ...settings.map((one) => shown(one[name]))]),
  ];
}

/** A row for each stage that any of them has ended: those of fewer steps are further from the teacher. */
function distances(runs) {
  const stages = [...new Set(runs.flatMap((run) => run.stages.map(({ stage }) => stage)))];
  const of = (run, stage) => figure(distance(run.stages.find((one) => one.stage === stage)));
  return stages.map((stage) => [`${APART}: ${stage}`, ...runs.map((run) => of(run, stage))]);
}

function tableRow([label, ...values], i) {
  const textContent = label.split(": ").map((part) => sayName(say(part))).join(": ");
  const [first, tag, scope] = i ? [make("th", { scope: "row", textContent }), "td", ""] : [make("td"), "th", "col"];
  return make("tr", {}, first, ...values.map((textContent) => make(tag, scope ? { scope, textContent } : { textContent, className: isNumber(textContent) ? "number" : "" })));
}

const isNumber = (text) => Number.isFinite(Number(text));

/** The table with a line for each run, as RFC 4180 has it. */
function csv(table) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const cell = (text) => quoted(isFormula(text) ? `'${text}` : text);
  return table[0].map((_, i) => `${table.map((row) => cell(row[i])).join(",")}\r\n`).join("");
}

/** Whether a spreadsheet would compute what was only written: a run's settings may come from somebody else. */
function isFormula(text) {
  return /^[=+\-@\t\r]/.test(text) && text !== "-" && Number.isNaN(Number(text));
}

const shown = (value) => (value === undefined ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value));

function picture({ run, preview, previews, preview_size }) {
  const alt = say`${run}, iteration ${preview}: above the teacher's pictures, below the student's`;
  const click = () => enlarge(previewsOf(run, previews), previews.indexOf(preview));
  const [width, height] = preview_size ?? [];
  const place = preview_size ? { width, height } : {}; // kept until the picture comes
  const enlarging = make("button", { type: "button", title: say("Enlarge"), on: { click } }, make("img", { src: previewUrl(run, preview), alt, ...place }));
  return make("figure", {}, make("figcaption", { textContent: run }), enlarging);
}

define("fewstep-runs-compared", Compared);
