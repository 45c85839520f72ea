// The runs browser: every run with what it is, how far it is, how good it is, and what can be done with it.
import "./fewstep_compare.js";
import "./fewstep_chart.js";
import { STYLE, copied, define, distance, figure, keepKeys, make } from "./fewstep_elements.js";
import { enlarge, previewsOf } from "./fewstep_enlarged.js";
import { OPEN, confirming, writing } from "./fewstep_asking.js";
import "./fewstep_runs_compared.js";
import { qualityContent } from "./fewstep_quality.js";
import {
  CONNECTION, EVERY, GUIDES, METRICS, STATE, cancelRun, cloneRun, deleteRun, fetchRuns, guideUrl, keepNote, previewUrl, reached, renameRun, repairRun,
  subscribe,
} from "./fewstep_service.js";
import { say, sayName } from "./fewstep_words.js";

const SECONDS_BETWEEN_LOOKS = 3;
// what another process trains tells nothing: while one trains, and while none does
const SECONDS_WITHOUT_A_WORD = 5;
const SECONDS_WITHOUT_A_RUN = 30;
const SECONDS_OF_A_WORD = 6; // that somebody may read it, or more of a long one
const LETTERS_READ_IN_A_SECOND = 8;
const STATES = { prepared: "data alone", written: "not begun", training: "training", stopped: "stopped", finished: "finished", absent: "gone", damaged: "damaged" };

const RENAMED = "renamed, in the graph that is seen too; graphs in other tabs still have the old name";

const OWN_STYLE = `
  :host { overflow: auto; padding: 0.8em; text-align: left; font-size: max(13px, 0.8125rem); background: var(--menu); }
  h2 { font-size: 1.2em; margin: 0; flex: 1; } ul { list-style: none; margin: 0.6em 0; padding: 0; display: grid; gap: 0.8em; }
  li { border: 1px solid var(--line); border-radius: 6px; padding: 0.6em; display: grid; gap: 0.4em; min-width: 0;
    grid-template-columns: minmax(0, 1fr); }
  h3 { font-size: 1em; margin: 0; overflow-wrap: anywhere; } fewstep-compare { min-height: 5em; max-height: 14em; }
  fewstep-chart { height: 15em; } .state { margin-left: auto; } .note { font-style: italic; white-space: pre-wrap; overflow-wrap: anywhere; }
  span:has(> .asking:not([hidden])) { flex: 1 0 100%; } .asking :is(input, textarea) { flex: 1 0 100%; }
  nav { gap: 1em; } a { color: inherit; }
  section { border: 1px solid var(--line); border-radius: 6px; padding: 0.6em; }
`;

class Runs extends HTMLElement {
  #leave = () => {};
  #timer = 0;
  #looked = 0;
  #due = null; // when it looks because something was said
  #asking = null;
  #told = "";
  #runs = [];
  #cards = new Map(); // run name -> {told, card}
  #chosen = new Set();
  #waiting = false;
  #unanswered = false;

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    keepKeys(this);
    const again = make("button", { type: "button", textContent: say("Refresh"), on: { click: () => this.#look() } });
    // what was not drawn because somebody was writing
    const closed = () => this.#waiting && !this.shadowRoot.querySelector(OPEN) && this.#lookSoon();
    this.list = make("ul", { on: { click: closed, keydown: closed }, aria: { label: say("Runs, the one that changed last first") } });
    this.said = make("p", { className: "soft", role: "status" });
    this.compared = make("section", { hidden: true, aria: { label: say("Runs beside each other") } });
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }),
      make("div", { className: "row" }, make("h2", { textContent: say("FewStep runs") }), again), this.said, this.compared, this.list,
      make("nav", { className: "row soft", aria: { label: say("Guides") } }, ...Object.entries(GUIDES).map(guide)));
  }

  /** What the editor does with a run: {openWorkflow(name), loadStudent(name), resume(name), renamed(name, to)}. */
  editor = {};

  connectedCallback() {
    this.#leave = subscribe(EVERY, (kind) => this.#heard(kind));
    this.#look();
  }

  disconnectedCallback() {
    this.#leave();
    clearTimeout(this.#timer);
    this.#givenUp();
    this.#due = null;
    this.#told = "";
  }

  #heard(kind) {
    if (kind === CONNECTION) this.#givenUp();
    if ([METRICS, STATE, CONNECTION].includes(kind)) this.#lookSoon();
  }

  /** What is asked now is of no use any more. */
  #givenUp() {
    this.#asking?.abort();
    this.#asking = null;
  }

  /** Words that come meanwhile put it off no further, and end nothing that is asked: a slow server would never be heard out. */
  #lookSoon() {
    this.#due ??= Math.max(this.#looked + 1000 * SECONDS_BETWEEN_LOOKS, performance.now() + 300);
    this.#lookIn(this.#due - performance.now(), () => {
      this.#due = null;
      if (this.#asking) this.#lookSoon();
      else this.#look();
    });
  }

  async #look() {
    this.#looked = performance.now();
    this.#givenUp();
    const { signal } = (this.#asking = new AbortController());
    try {
      const runs = await fetchRuns({ signal });
      if (!signal.aborted) this.#draw(runs);
    } catch (error) {
      if (!signal.aborted) this.#sayIn(this.said, error.message, { failed: (this.#unanswered = true) });
    }
    if (signal.aborted) return;
    this.#asking = null;
    if (this.#due === null) this.#lookLater();
  }

  /** Unless something is said before; not while nobody sees it. */
  #lookLater() {
    const trains = this.#runs.some(({ state }) => state === "training");
    const seconds = trains ? SECONDS_WITHOUT_A_WORD : SECONDS_WITHOUT_A_RUN;
    this.#lookIn(1000 * seconds, () => (document.hidden ? this.#lookLater() : this.#look()));
  }

  #lookIn(milliseconds, look) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(look, milliseconds);
  }

  /** Only what is new: whoever is about to press a button keeps it. */
  #draw(runs) {
    if (this.#unanswered) this.#sayAlways(); // also of runs that are as they were
    const told = JSON.stringify(runs);
    this.#waiting = told !== this.#told && this.shadowRoot.querySelector(OPEN) !== null;
    if (told === this.#told || this.#waiting) return;
    this.#told = told;
    this.#chosen = new Set(runs.map(({ run }) => run).filter((name) => this.#chosen.has(name)));
    this.#runs = runs;
    this.#sayAlways();
    this.#cards = new Map(runs.map((run) => [run.run, this.#kept(run)]));
    const cards = [...this.#cards.values()].map(({ card }) => card);
    const refocus = this.#refocusing(cards);
    for (const card of [...this.list.children]) if (!cards.includes(card)) card.remove();
    cards.forEach((card, i) => this.list.children[i] !== card && this.list.insertBefore(card, this.list.children[i] ?? null));
    refocus();
    this.#compare(runs);
  }

  /** What has the focus in a card that goes gives it to the same of the run's new card, or of the card that comes in its place. */
  #refocusing(cards) {
    const focused = this.shadowRoot.activeElement;
    const old = focused?.closest("li");
    if (!old || cards.includes(old)) return () => {};
    const place = [...this.list.children].indexOf(old);
    const card = cards.find((one) => one.dataset.run === old.dataset.run) ?? cards[Math.min(place, cards.length - 1)];
    const same = [...(card?.querySelectorAll(focused.localName) ?? [])].find((one) => one.textContent === focused.textContent);
    return () => (same && !same.disabled && !same.hidden ? same : card?.querySelector("input"))?.focus();
  }

  /** The card that is there where the run is as it was, with the focus and the answers that are on it. */
  #kept(run) {
    const told = JSON.stringify(run);
    const known = this.#cards.get(run.run);
    return known?.told === told ? known : { told, card: this.#card(run) };
  }

  #choose(run, chosen) {
    this.#chosen[chosen ? "add" : "delete"](run);
    const before = this.compared.hidden;
    this.#compare(this.#runs);
    if (before && !this.compared.hidden) this.compared.scrollIntoView({ block: "nearest" }); // above a list that may be long
  }

  /** Those that are chosen, from two on. */
  #compare(runs) {
    const chosen = runs.filter(({ run }) => this.#chosen.has(run));
    this.compared.hidden = chosen.length < 2;
    if (this.compared.hidden) return this.compared.replaceChildren();
    const shown = this.compared.firstChild ?? this.compared.appendChild(make("fewstep-runs-compared"));
    shown.show(chosen);
  }

  async #rename(run, name) {
    await renameRun(run, name);
    this.editor.renamed(run, name);
  }

  #card(run) {
    const choice = make("input", { type: "checkbox", checked: this.#chosen.has(run.run), title: say("Two or more that are chosen are shown beside each other."),
      aria: { label: say`Compare ${run.run}` }, on: { change: (event) => this.#choose(run.run, event.target.checked) } });
    const head = make("div", { className: "row" }, choice, make("h3", { textContent: run.run }),
      make("span", { className: "state soft", textContent: progress(run) }));
    const noted = run.note ? [make("div", { className: "note", textContent: run.note })] : [];
    const shown = [head, ...noted, make("div", { className: "soft", textContent: about(run) })];
    if (run.failure && run.state !== "training") shown.push(make("div", { className: "error", textContent: say`Its last start ended with an error: ${run.failure}` }));
    if (run.error) shown.push(make("div", { className: "error", textContent: run.error }));
    if (run.preview !== null) shown.push(picture(run));
    if (run.stages?.length) shown.push(make("div", { textContent: stages(run) }));
    if (run.scores?.length) shown.push(...quality(run));
    const card = make("li", {}, ...shown, this.#buttons(run));
    card.dataset.run = run.run;
    return card;
  }

  /** Where something is said of a run that has one of these names now: on its card, which may be another meanwhile, or above all. */
  #place(...names) {
    const { card } = names.map((name) => this.#cards.get(name)).find(Boolean) ?? {};
    return card?.querySelector(".said") ?? this.said;
  }

  /** Says something for some seconds, and then again what is always said there; what failed until something else is done. */
  #sayIn(place, text, { failed = false } = {}) {
    place.textContent = text;
    place.classList.toggle("soft", !failed);
    place.classList.toggle("failed", failed);
    if (failed) return;
    const seconds = Math.max(SECONDS_OF_A_WORD, text.length / LETTERS_READ_IN_A_SECOND);
    setTimeout(() => place.textContent === text && (place.textContent = place === this.said ? this.#always : ""), 1000 * seconds);
  }

  #sayAlways() {
    this.#unanswered = false;
    this.#sayIn(this.said, this.#always);
  }

  get #always() {
    return this.#runs.length ? "" : say("No runs yet. Make It Fast, Distill Model and Write Run make them.");
  }

  #buttons(run) {
    const said = make("span", { className: "soft said", role: "status" });
    const doing = (action, done) => async (...given) => {
      said.textContent = "";
      try {
        await action(...given);
        this.#sayIn(this.#place(run.run, ...given), typeof done === "string" ? say(done) : done(...given));
      } catch (error) {
        this.#sayIn(this.#place(run.run), error.message, { failed: true });
      }
    };
    const changing = (action, done) => doing((...given) => Promise.resolve(action(...given)).then(() => this.#look()), done);
    const button = (text, click, { title, ...options } = {}) =>
      make("button", { type: "button", textContent: say(text), on: { click }, title: title ? say(title) : "", ...options });
    const training = run.state === "training";
    const [goOn, goingOn] = run.state === "written" ? ["Start", "Opens its workflow and queues it."]
      : ["Resume", "Opens its workflow and queues it: the run goes on from its last state."];
    const { openWorkflow, loadStudent, resume } = this.editor;
    return make("div", { className: "row" },
      button("Open workflow", doing(() => openWorkflow(run.run), "opened"), { disabled: !run.has_workflow, title: "Opens the graph that this run was last started from." }),
      button("Load student", doing(() => loadStudent(run.run), "added to the graph"), { disabled: run.state !== "finished", title: "Adds Load Distilled Student with this run to the graph." }),
      button(goOn, doing(() => resume(run.run), "queued"), { hidden: !["stopped", "written"].includes(run.state), disabled: !run.has_workflow, title: goingOn }),
      button("Cancel", changing(() => cancelRun(run.run), "cancelling"), { hidden: !training, title: "Saves the state of this run and stops it at once." }),
      button("Repair", changing(() => repairRun(run.run), "repaired"), { hidden: !run.repairable, disabled: training, title: "Keeps the lines of its metrics that are whole; the file as it was stays beside." }),
      button("Copy command", doing(() => copyOrSay(run.command), "copied"), { disabled: run.state === "prepared", title: run.command }),
      writing({ label: say("Note"), title: say("Says something of this run in the list.") }, say`Note on ${run.run}`, { value: run.note ?? "", tag: "textarea" }, changing((text) => keepNote(run.run, text), "noted")),
      writing({ label: say("Rename"), title: say("Files that were published of it keep their names."), disabled: training }, say`New name of ${run.run}`, { value: run.run }, changing((name) => this.#rename(run.run, name), RENAMED)),
      writing({ label: say("Clone"), title: say("Writes a new run of the same settings and data, not begun yet."), disabled: run.state === "prepared" }, say`Name of the new run like ${run.run}`, { value: `${run.run} 2` }, changing((name) => cloneRun(run.run, name), (name) => say`written as ${name}`)),
      confirming({ label: say("Delete"), disabled: training }, question(run), say("Yes, delete"), changing(() => deleteRun(run.run), () => say`${run.run} is deleted`)),
      said);
  }
}

async function copyOrSay(command) {
  if (!(await copied(command))) throw new Error(command); // which is said in place of "copied"
}

function guide([name, title]) {
  return make("a", { href: guideUrl(name), target: "_blank", rel: "noopener", textContent: say(title) });
}

/** With what becomes of a finished student, which was published for the host's own loaders. */
function question({ run, state, student, demo }) {
  const folder = { lora: "output/loras/fewstep", full_weights: "output/diffusion_models/fewstep" }[student.kind];
  if (state !== "finished" || !folder) return say`Delete ${run} for good?`;
  if (demo) return say`Delete ${run} for good? Its student goes with it.`; // no loader reads it
  return say`Delete ${run} for good? What lies in ${folder} of its student stays.`;
}

function progress(run) {
  const { state, iterations, error } = run;
  const far = state === "finished" || !iterations ? "" : say`, ${reached(run)} of ${iterations}`;
  return say(STATES[state]) + far + (error && state !== "damaged" ? say(", damaged") : "");
}

function about({ method, options = {}, student = {}, teacher }) {
  if (!method) return "";
  const steps = options.start_steps ? say` ${options.start_steps} to ${options.target_steps} steps` : "";
  const learns = student.kind === "lora" ? say`LoRA of rank ${student.rank}` : say("full weights");
  return say`${sayName(method)}${steps}, ${learns}, teacher ${teacher.slice(0, 8)}`;
}

function stages({ stages }) {
  const said = stages.map((one) => `${sayName(one.stage)}: ${distance(one) === null ? "-" : `${figure(distance(one))} %`}`);
  return say`Distance from the teacher: ${said.join("; ")}`;
}

/** Fetched when it comes into sight: those of all runs together may be hundreds of megabytes. */
function picture(run) {
  const onenlarge = () => enlarge(previewsOf(run.run, run.previews), run.previews.indexOf(run.preview));
  const made = make("fewstep-compare", { onenlarge });
  made.overlaid = true;
  if (run.preview_size) made.size = run.preview_size;
  const sight = new IntersectionObserver((entries) => {
    if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
    sight.disconnect();
    made.address = previewUrl(run.run, run.preview);
  });
  sight.observe(made);
  return made;
}

function quality({ scores }) {
  const chart = make("fewstep-chart");
  const best = scores.filter((score) => score.model === "student" && score.frechet !== null).sort((one, other) => one.frechet - other.frechet)[0];
  const said = best ? say`Best student: ${best.steps} steps, Frechet distance ${figure(best.frechet)}, accuracy ${figure(best.accuracy)}` : "";
  requestAnimationFrame(() => chart.draw(qualityContent(scores)));
  return [make("div", { textContent: said }), chart];
}

define("fewstep-runs", Runs);
