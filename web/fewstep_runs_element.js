// The runs browser: every run with what it is, how far it is, how good it is, and what can be done with it.
import "./fewstep_compare.js";
import "./fewstep_chart.js";
import { STYLE, define, figure, make } from "./fewstep_elements.js";
import { qualityContent } from "./fewstep_quality.js";
import { METRICS, STATE, deleteRun, fetchRuns, previewUrl, repairRun, subscribe } from "./fewstep_service.js";

const SECONDS_BETWEEN_LOOKS = 3;
const STATES = { written: "not begun", training: "training", stopped: "stopped", finished: "finished", absent: "gone", damaged: "damaged" };

const OWN_STYLE = `
  :host { overflow: auto; padding: 0.8em; text-align: left; font-size: max(13px, 0.8125rem); background: var(--comfy-menu-bg, #353535); }
  h2 { font-size: 1.2em; margin: 0; flex: 1; } ul { list-style: none; margin: 0.6em 0; padding: 0; display: grid; gap: 0.8em; }
  li { border: 1px solid var(--line); border-radius: 6px; padding: 0.6em; display: grid; gap: 0.4em; min-width: 0; }
  h3 { font-size: 1em; margin: 0; overflow-wrap: anywhere; } fewstep-compare { min-height: 5em; max-height: 14em; }
  fewstep-chart { height: 15em; } .state { margin-left: auto; } .error { color: var(--error-text, #ff4444); }
`;

class Runs extends HTMLElement {
  #leave = () => {};
  #timer = 0;
  #looked = 0;
  #asking = null;
  #told = "";

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    const again = make("button", { type: "button", textContent: "Refresh", on: { click: () => this.#look() } });
    this.list = make("ul", { aria: { label: "Runs, the one that changed last first" } });
    this.said = make("p", { className: "soft", role: "status" });
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }),
      make("div", { className: "row" }, make("h2", { textContent: "FewStep runs" }), again), this.said, this.list);
  }

  /** What the editor does with a run: {openWorkflow(name), loadStudent(name)}. */
  editor = {};

  connectedCallback() {
    this.#leave = subscribe("", (kind) => (kind === METRICS || kind === STATE) && this.#lookSoon());
    this.#look();
  }

  disconnectedCallback() {
    this.#leave();
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#told = "";
  }

  #lookSoon() {
    clearTimeout(this.#timer);
    const due = this.#looked + 1000 * SECONDS_BETWEEN_LOOKS - performance.now();
    this.#timer = setTimeout(() => this.#look(), Math.max(due, 300));
  }

  async #look() {
    this.#looked = performance.now();
    this.#asking?.abort();
    const { signal } = (this.#asking = new AbortController());
    try {
      const runs = await fetchRuns({ signal });
      if (!signal.aborted) this.#draw(runs);
    } catch (error) {
      if (!signal.aborted) this.said.textContent = error.message;
    }
  }

  /** Only what is new: whoever is about to press a button keeps it. */
  #draw(runs) {
    const told = JSON.stringify(runs);
    if (told === this.#told) return;
    this.#told = told;
    this.said.textContent = runs.length ? "" : "No runs yet. Distill Model and Write Run make them.";
    this.list.replaceChildren(...runs.map((run) => this.#card(run)));
  }

  #card(run) {
    const head = make("div", { className: "row" }, make("h3", { textContent: run.run }),
      make("span", { className: "state soft", textContent: progress(run) }));
    const shown = [head, make("div", { className: "soft", textContent: about(run) })];
    if (run.failure && run.state !== "training") shown.push(make("div", { className: "error", textContent: `Its last start ended with an error: ${run.failure}` }));
    if (run.error) shown.push(make("div", { className: "error", textContent: run.error }));
    if (run.preview !== null) shown.push(picture(run));
    if (run.stages?.length) shown.push(make("div", { textContent: stages(run) }));
    if (run.scores?.length) shown.push(...quality(run));
    return make("li", {}, ...shown, this.#buttons(run));
  }

  #buttons(run) {
    const said = make("span", { className: "soft", role: "status" });
    const doing = (action, done) => async () => {
      said.textContent = await Promise.resolve(action()).then(() => done, (error) => error.message);
    };
    const button = (textContent, click, options = {}) => make("button", { type: "button", textContent, on: { click }, ...options });
    const { openWorkflow, loadStudent } = this.editor;
    const repair = button("Repair", doing(() => repairRun(run.run).then(() => this.#look()), "repaired"),
      { hidden: !run.repairable, disabled: run.state === "training", title: "Keeps the lines of its metrics that are whole; the file as it was stays beside." });
    return make("div", { className: "row" },
      button("Open workflow", doing(() => openWorkflow(run.run), "opened"), { disabled: !run.has_workflow, title: "Opens the graph that this run was last started from." }),
      button("Copy command", doing(() => navigator.clipboard.writeText(run.command), "copied"), { title: run.command }),
      button("Load student", doing(() => loadStudent(run.run), "added to the graph"), { disabled: run.state !== "finished", title: "Adds Load Distilled Student with this run to the graph." }),
      repair, confirming(button, "Delete", `Delete ${run.run} for good?`, doing(() => deleteRun(run.run).then(() => this.#look()), "deleted"), run.state === "training"),
      said);
  }
}

/** A button that does nothing before it was confirmed. */
function confirming(button, label, question, action, disabled) {
  const ask = make("span", { className: "row", hidden: true });
  const first = button(label, () => toggle(true), { disabled });
  const no = button("No", () => toggle(false));
  const toggle = (asking) => {
    ask.hidden = !asking;
    first.hidden = asking;
    (asking ? no : first).focus();
  };
  ask.append(question, button("Yes, delete", action), no);
  return make("span", {}, first, ask);
}

function progress({ state, iteration, iterations, error }) {
  const far = state === "finished" || !iterations ? "" : `, ${iteration} of ${iterations}`;
  return STATES[state] + far + (error && state !== "damaged" ? ", damaged" : "");
}

function about({ method, options = {}, student = {}, teacher }) {
  if (!method) return "";
  const steps = options.start_steps ? ` ${options.start_steps} to ${options.target_steps} steps` : "";
  const learns = student.kind === "lora" ? `LoRA of rank ${student.rank}` : "full weights";
  return `${method.replaceAll("_", " ")}${steps}, ${learns}, teacher ${teacher.slice(0, 8)}`;
}

function stages({ stages }) {
  const said = stages.map(({ stage, mean_squared_distance, teacher_mean_square }) =>
    `${stage}: ${figure((100 * mean_squared_distance) / teacher_mean_square)} %`);
  return `Distance from the teacher: ${said.join("; ")}`;
}

function picture(run) {
  const made = make("fewstep-compare", { address: previewUrl(run.run, run.preview) });
  made.overlaid = true;
  return made;
}

function quality({ scores }) {
  const chart = make("fewstep-chart");
  const best = scores.filter((score) => score.model === "student").sort((one, other) => one.frechet - other.frechet)[0];
  const said = best ? `Best student: ${best.steps} steps, Frechet distance ${figure(best.frechet)}, accuracy ${figure(best.accuracy)}` : "";
  requestAnimationFrame(() => chart.draw(qualityContent(scores)));
  return [make("div", { textContent: said }), chart];
}

define("fewstep-runs", Runs);
