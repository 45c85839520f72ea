// What a training run looks like while it goes on and afterwards: state, curves, pictures, and the buttons to stop and resume.
import "./fewstep_chart.js";
import "./fewstep_previews.js";
import "./fewstep_text.js";
import { CURVES, STYLE, copied, define, make, markLaidOut } from "./fewstep_elements.js";
import { smoothed } from "./fewstep_chart.js";
import { figures, heard, isFailure, sentence } from "./fewstep_panel_words.js";
import { say } from "./fewstep_words.js";
import { CONNECTION, PHASE, STATE, METRICS, cancelRun, fetchRun, isAnother, isConnected, reached, stopAfterCheckpoint, subscribe } from "./fewstep_service.js";

const SECONDS_BETWEEN_LOOKS = 1;
const GAP = 8; // at least what is between two rows
const SECONDS_WITHOUT_A_WORD = 5; // of a run that another process trains, the folder is looked at
const SECONDS_OF_A_REFUSAL = 6; // that somebody may read it
const MOST_POINTS = 4000; // of a run of days; the server puts those of a whole run together, to half as many
const VIEWS = { loss: "Loss", bands: "Noise levels", measures: "Companion", rate: "Learning rate", pictures: "Pictures" };
// what shows a companion lagging, contrast growing, and a critic that has the say
const MEASURES = ["gap", "cosine", "std", "real_std", "adversarial"];
const LEARNERS = ["fake", "critic"]; // besides the student
const COLUMNS = ["iteration", "stage", "loss", "x0_error", "gradient_norm", "learning_rate"];

const OWN_STYLE = `
  :host { display: flex; flex-direction: column; gap: 0.4em; }
  progress { width: 100%; height: 0.5em; accent-color: var(--student); }
  .view { flex: 1; min-height: 0; } :host([laid-out]) .view { min-height: 20em; } .sentence { font-weight: 600; }
  fewstep-text { height: 16em; flex: none; }
  .sentence:has(+ .heard:focus-visible) { outline: 2px solid var(--student); }
`;

class Panel extends HTMLElement {
  #run = null;
  #unsubscribe = () => {};
  #asking = null;
  #again = false;
  #timer = 0;
  #looked = 0;
  #words = 0; // that were heard
  #refused = -Infinity;
  #known = {};
  #now = {};
  #view = "loss";
  #drawn = []; // what the chart is of
  #said = make("fewstep-text");

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.sentence = make("div", { className: "sentence", aria: { hidden: "true" } });
    this.heard = make("div", { className: "heard", role: "status", tabIndex: -1 });
    this.bar = make("progress", { max: 1, value: 0, aria: { label: say("Iterations done") } });
    this.figures = make("div", { className: "row soft" });
    this.tabs = Object.entries(VIEWS).map(([view, label]) =>
      make("button", { type: "button", textContent: say(label), on: { click: () => this.#choose(view) } }));
    this.chart = make("fewstep-chart", { className: "view" });
    this.pictures = make("fewstep-previews", { className: "view", hidden: true });
    this.buttons = make("div", { className: "row" }, ...this.#makeButtons());
    this.body = [this.bar, this.figures, make("div", { className: "row" }, ...this.tabs), this.chart, this.pictures];
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.sentence, this.heard, ...this.body, this.buttons);
    this.#forget();
  }

  #makeButtons() {
    const button = (text, title, click) => make("button", { type: "button", textContent: say(text), title: say(title), on: { click } });
    this.stop = button("Stop after this checkpoint", "Trains to the next checkpoint, saves and stops.", () => this.#stop());
    this.cancel = button("Cancel", "Saves the state of this run and stops it at once.", () => this.#cancel());
    this.resume = button("Resume", "Queues the graph again; the run goes on from its last state.", () => this.onresume?.());
    this.command = button("Copy command", "What trains this run in a terminal.", () => this.#copyCommand());
    return [this.stop, this.cancel, this.resume, this.command];
  }

  /** Called when there is nothing to show but a sentence, or something again. */
  onsize = null;
  onresume = null;
  /** Whether another process trains the run, which is started by its command. */
  watching = false;

  connectedCallback() {
    // Nodes 2.0 lays nodes out as elements and gives each widget the room that its content asks for, not what we name
    markLaidOut(this);
    this.#follow();
  }

  disconnectedCallback() {
    this.#leave();
  }

  #leave() {
    this.#unsubscribe();
    this.#unsubscribe = () => {};
    this.#givenUp();
    clearTimeout(this.#timer);
  }

  /** What is asked now is of no use any more. */
  #givenUp() {
    this.#asking?.abort();
    this.#asking = null;
  }

  /** Of the node: {nameless, unsure} whether its name is none, or nobody knows yet, {planning} whether it is told to plan only,
   *  {waiting} whether the graph's execution is at it. */
  set now(now) {
    if (JSON.stringify(now) === JSON.stringify(this.#now)) return;
    this.#now = now;
    this.#draw();
  }

  /** The name of the run that is shown; null while there is none. */
  set run(name) {
    if (name === this.#run) return;
    this.#run = name;
    this.#forget();
    this.#follow();
  }

  get run() {
    return this.#run;
  }

  /** Whether there is more to show than a sentence: not while training data are made, for hours it may be. */
  get large() {
    const { curves, previews, state, live } = this.#known;
    return curves.iteration.length > 0 || previews.length > 0 || (state === "training" && live !== null);
  }

  /** Whether it is on another node than its own. */
  away = false;

  /** What its node says beside it, a plan: it is seen here where the node is not. */
  set said({ text = "", outdated = false }) {
    const seen = text !== "" && (this.away || this.hasAttribute("in-app"));
    if (seen !== (this.#said.parentNode !== null)) {
      if (seen) this.shadowRoot.append(this.#said);
      else this.#said.remove();
      this.onsize?.();
    }
    if (!seen) return;
    if (text !== this.#said.text) this.#said.text = text;
    this.#said.outdated = outdated;
  }

  /** The height in which all is seen while there is no more than a sentence, and buttons, and what its node says. */
  get small() {
    return this.sentence.offsetHeight + (this.buttons.hidden ? 0 : this.buttons.offsetHeight + GAP) + this.saying;
  }

  /** The height of what its node says; in an app it is laid out by itself. */
  get saying() {
    return this.away && this.#said.parentNode ? this.#said.offsetHeight + GAP : 0;
  }

  #forget() {
    const curves = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    this.#known = { state: "unknown", curves: { ...curves, band_errors: [], measures: {} }, stages: {}, previews: [], live: null, error: null };
    this.#draw();
  }

  #follow() {
    this.#leave(); // an answer of the run before is not this one's
    if (!this.isConnected || this.#run === null) return;
    this.#unsubscribe = subscribe(this.#run, (kind, data) => this.#heard(kind, data));
    this.#lookSoon(0);
  }

  #heard(kind, data) {
    this.#words += 1;
    if (kind === METRICS) this.#known = { ...this.#known, live: data, phase: null, state: "training" };
    if (kind === PHASE) this.#known = { ...this.#known, phase: data.phase ? data : null };
    if (kind === PHASE && data.phase) this.#known = { ...this.#known, error: null }; // of a start before: of a plan no begin is told
    if (kind === STATE && data.state === "changed") this.#forget(); // another run may have its name now
    if (kind === CONNECTION) this.#givenUp();
    // what was under way when the connection broke may have ended unheard
    if (kind === STATE || kind === CONNECTION) this.#known = { ...this.#known, phase: null };
    if (kind === STATE) this.#known = { ...this.#known, error: data.error ?? null, published: data.published ?? null, startLeft: data.start_left };
    this.#draw();
    this.#lookSoon(kind === METRICS ? SECONDS_BETWEEN_LOOKS : 0);
  }

  /** Asks the server, at most once in SECONDS_BETWEEN_LOOKS; `after` that many seconds at the earliest. */
  #lookSoon(after) {
    const now = performance.now();
    const due = Math.max(this.#looked + 1000 * SECONDS_BETWEEN_LOOKS, now + (after > SECONDS_BETWEEN_LOOKS ? 1000 * after : 0));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), Math.max(due - now, 0));
  }

  async #look() {
    if (this.#asking) return (this.#again = true); // a slow server would else never be heard to the end
    this.#looked = performance.now();
    const asking = (this.#asking = new AbortController());
    const words = this.#words;
    this.#again = false;
    try {
      const { iteration } = this.#known.curves;
      const after = iteration.length > MOST_POINTS ? -1 : iteration.at(-1) ?? -1;
      const told = await fetchRun(this.#run, { after, signal: asking.signal });
      if (!asking.signal.aborted) this.#learn(told, { newest: words === this.#words, whole: after < 0 });
    } catch (error) {
      if (asking.signal.aborted) return;
      this.#known = { ...this.#known, refusal: isConnected() ? error.message : null };
      this.#draw();
      if (this.watching || this.#known.state === "training") this.#lookSoon(SECONDS_WITHOUT_A_WORD);
    } finally {
      if (this.#asking === asking) this.#asking = null;
      if (this.#again && !asking.signal.aborted) this.#lookSoon(0);
    }
  }

  /** newest: whether nothing was heard since it was asked, as what goes on in a page that was just opened. whole: whether its curves
   *  are those of the whole run. */
  #learn(told, { newest, whole }) {
    const last = this.#known.curves.iteration.at(-1) ?? -1;
    if (told.iteration < last) {
      isAnother(this.#run);
      this.#forget(); // the run was begun anew, or goes on from before what was shown
      this.#lookSoon(0);
      return;
    }
    const curves = whole ? told.curves : joined(this.#known.curves, told.curves);
    const live = told.state === "training" ? this.#newer(told.live) : null;
    const cancelAsked = this.#known.cancelAsked && told.state === "training";
    const error = told.state === "training" ? null : this.#known.error; // of the start before
    const refusal = performance.now() < this.#refused + 1000 * SECONDS_OF_A_REFUSAL ? this.#known.refusal : null;
    const phase = (newest && told.phase) || this.#known.phase;
    this.#known = { ...this.#known, ...told, curves, live, phase, cancelAsked, error, refusal };
    this.#draw();
    // what another process does is told by nobody
    if (told.state === "training" || (this.watching && told.state !== "finished")) this.#lookSoon(SECONDS_WITHOUT_A_WORD);
  }

  #newer(live) {
    const known = this.#known.live;
    return known && (!live || known.iteration > live.iteration) ? known : live;
  }

  async #stop() {
    try {
      await stopAfterCheckpoint(this.#run);
    } catch (error) {
      return this.#refuse(error.message);
    }
    this.#lookSoon(0);
  }

  /** Says for some seconds what the server answered. */
  #refuse(refusal) {
    this.#refused = performance.now();
    this.#known = { ...this.#known, cancelAsked: false, refusal };
    this.#draw();
    this.#lookSoon(SECONDS_OF_A_REFUSAL);
  }

  async #cancel() {
    this.#known = { ...this.#known, cancelAsked: true }; // said at once, and until the run has ended
    this.#draw();
    try {
      await cancelRun(this.#run);
    } catch (error) {
      return this.#refuse(error.message);
    }
    this.#lookSoon(0);
  }

  async #copyCommand() {
    this.command.textContent = (await copied(this.#known.command)) ? say("Copied") : this.#known.command;
    setTimeout(() => (this.command.textContent = say("Copy command")), 3000);
  }

  #choose(view) {
    this.#view = view;
    this.#draw();
  }

  #draw() {
    const node = { ...this.#now, watching: this.watching };
    const known = { ...this.#known, ...node, iteration: reached(this.#known), connected: isConnected(), run: this.#run };
    this.sentence.textContent = sentence(known);
    if (this.heard.textContent !== heard(known)) this.heard.textContent = heard(known);
    this.sentence.classList.toggle("failed", isFailure(known));
    this.#drawButtons(known);
    for (const element of this.body) element.hidden = !this.large;
    this.#drawFigures(known);
    this.#drawView();
    this.onsize?.();
  }

  #drawButtons({ state, stopping, cancelling, cancelAsked, connected }) {
    const training = connected && state === "training";
    const focused = this.shadowRoot.activeElement;
    this.stop.hidden = this.cancel.hidden = !training;
    this.cancel.disabled = Boolean(cancelling || cancelAsked);
    this.stop.disabled = Boolean(stopping || this.cancel.disabled);
    this.resume.hidden = !(connected && state === "stopped" && this.onresume);
    this.command.hidden = !(connected && this.watching && this.#known.command && ["written", "stopped"].includes(state));
    this.buttons.hidden = !training && this.resume.hidden && this.command.hidden;
    if (focused?.hidden) this.heard.focus({ preventScroll: true }); // no button that comes: Enter once more would stop what it began
  }

  #drawFigures(known) {
    const iteration = known.live?.iteration ?? known.iteration ?? 0;
    this.bar.max = known.live?.iterations ?? known.iterations ?? 1;
    this.bar.value = iteration;
    this.figures.replaceChildren(...figures(known).map((text) => make("span", {}, text)));
  }

  #drawView() {
    this.tabs[Object.keys(VIEWS).indexOf("measures")].hidden = !MEASURES.some((name) => this.#known.curves.measures[name]);
    this.tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", Object.keys(VIEWS)[i] === this.#view));
    this.chart.hidden = !this.large || this.#view === "pictures";
    this.pictures.hidden = !this.large || this.#view !== "pictures";
    if (!this.pictures.hidden) this.pictures.update(this.#run, this.#known.previews);
    if (!this.chart.hidden) this.#drawChart();
  }

  /** Only what is new: figures come several times a second. */
  #drawChart() {
    const { curves, stages } = this.#known;
    const drawn = [curves, this.#view, JSON.stringify(stages)];
    if (drawn.every((one, i) => one === this.#drawn[i])) return;
    this.#drawn = drawn;
    this.chart.draw(content(this.#view, this.#known));
  }
}

/** The columns that were known and those that came, one after the other. */
function joined(known, came) {
  if (!came.iteration.length) return known;
  const curves = Object.fromEntries(COLUMNS.map((name) => [name, [...known[name], ...came[name]]]));
  const bands = Math.max(known.band_errors.length, came.band_errors.length);
  const part = (of, band) => of.band_errors[band] ?? of.iteration.map(() => null);
  curves.band_errors = Array.from({ length: bands }, (_, band) => [...part(known, band), ...part(came, band)]);
  const gap = (of, name) => of.measures[name] ?? of.iteration.map(() => null);
  const names = new Set([...Object.keys(known.measures), ...Object.keys(came.measures)]);
  curves.measures = Object.fromEntries([...names].map((name) => [name, [...gap(known, name), ...gap(came, name)]]));
  return curves;
}

function content(view, { curves, stages }) {
  const common = { x: curves.iteration, stages: curves.stage, names: stages };
  if (view === "rate") return { ...common, lines: [{ label: say("learning rate"), values: curves.learning_rate, colour: "--student" }] };
  if (view === "measures") return { ...common, lines: measureLines(curves) };
  if (view === "bands") return { ...common, log: true, lines: bandLines(curves) };
  return {
    ...common,
    log: true,
    lines: [
      { label: say("loss"), values: curves.loss, colour: "--student", faint: true },
      { label: say("smoothed"), values: smoothed(curves.loss, curves.stage), colour: "--student" },
      ...companionLines(curves),
    ],
  };
}

/** The losses of those who learn besides the student. */
function companionLines({ measures, stage }) {
  const names = Object.keys(measures).filter((name) => name.endsWith("_loss"));
  const learner = (name) => (LEARNERS.includes(name) ? say(name) : name);
  return names.map((name, i) => ({ label: say`${learner(name.replace(/_loss$/, ""))} loss`, values: smoothed(measures[name], stage), colour: CURVES[i % 3][0], dash: CURVES[1 + (i % 3)][1] }));
}

function measureLines({ measures, stage }) {
  const known = MEASURES.filter((name) => measures[name]);
  const look = (i) => ({ colour: CURVES[i][0], dash: CURVES[i][1] });
  return known.map((name, i) => ({ label: say(name.replace("_", " ")), values: smoothed(measures[name], stage), ...look(i) }));
}

function bandLines({ band_errors, stage }) {
  const label = (i) => (i === 0 ? say("least noise") : i === band_errors.length - 1 ? say("most noise") : say`band ${i + 1}`);
  const look = (i) => ({ colour: CURVES[i % 4][0], dash: CURVES[i % 4][1] });
  return band_errors.map((values, i) => ({ label: label(i), values: smoothed(values, stage), ...look(i) }));
}

define("fewstep-panel", Panel);
