// Between the host's socket and the elements: who shows a run subscribes here, and asks the server's routes here.
import { api } from "../../scripts/api.js";
import { isLinked } from "./fewstep_elements.js";
import { nodeBehind, setting } from "./fewstep_wires.js";
import { say } from "./fewstep_words.js";

export const METRICS = "fewstep.metrics";
export const STATE = "fewstep.state";
export const PHASE = "fewstep.phase";
export const PLAN = "fewstep.plan";
export const CONNECTION = "connection";

/** Nodes that train the run that they name. */
export const TRAINING = ["FewStepMakeItFast", "FewStepDistill"];

/** For who listens to every run: no name is this one. */
export const EVERY = Symbol("every run");
/** run name, or EVERY -> set of listeners (kind, data). */
const listeners = new Map();
let connected = true;

// at once: editors of today complain of a message that nobody listens for
for (const kind of [METRICS, STATE, PHASE, PLAN]) api.addEventListener(kind, ({ detail }) => {
  if (kind === STATE && detail.state === "changed") isAnother(detail.run); // renamed, deleted, or new under that name
  tell(detail.run, kind, detail);
});
api.addEventListener("reconnecting", () => connect(false));
api.addEventListener("reconnected", () => connect(true));

function connect(now) {
  connected = now;
  for (const name of [...listeners.keys()]) tell(name, CONNECTION, { connected });
}

function tell(run, kind, data) {
  const own = [...(listeners.get(run) ?? [])];
  const all = run === EVERY ? [] : [...(listeners.get(EVERY) ?? [])];
  for (const listener of [...own, ...all]) listener(kind, data);
}

/** Calls listener(kind, data) with what happens to a run until the function that this returns is called. */
export function subscribe(run, listener) {
  if (!listeners.has(run)) listeners.set(run, new Set());
  listeners.get(run).add(listener);
  return () => {
    listeners.get(run)?.delete(listener);
    if (!listeners.get(run)?.size) listeners.delete(run);
  };
}

/** The run that a node names, through Write Run where that comes before; null when it comes over another link. within: as setting()
 *  has it. */
export function runNamed(node, within = null) {
  if (isLinked(node, "written")) {
    const before = nodeBehind(node, "written");
    return before && before.type === "FewStepWriteRun" ? runNamed(before, within) : null;
  }
  return setting(node, "run_name", within)?.value ?? null;
}

/** Whether what is told is of this node, which may be inside a subgraph, and of the run that it names: another tab's graph has
 *  the same nodes when both come from one template. */
export function isOf(data, node, within = null) {
  const named = runNamed(node, within);
  return isAt(data.node, node, within) && (named === null || named === data.run);
}

/** Whether a place in what is queued ("3", or "7:3" for a node inside 7) is a node's. */
export function isAt(place, node, within = null) {
  const ids = String(place).split(":");
  return ids.at(-1) === String(node.id) && (!within || ids.includes(String(within.id)));
}

/** The iteration that a run is at: a stopped one goes on where it was saved, before or after the newest of its metrics. */
export function reached({ state, iteration, saved }) {
  return state === "stopped" ? saved ?? iteration : iteration;
}

/** How many elements listen now. */
export function subscribers() {
  return [...listeners.values()].reduce((count, set) => count + set.size, 0);
}

export function isConnected() {
  return connected;
}

export const unanswered = () =>
  say("The server does not answer. If it was restarted, training has stopped; what was saved stays, and this comes back by itself.");

const anothers = () =>
  say("Something between this page and ComfyUI answered in its place, a page to log in, say. Reload this page and log in.");

/** The JSON answer of a route. Error with the server's own words where it refuses, in ours where nobody answers: each browser has
 *  others for that ("Failed to fetch", "NetworkError when attempting to fetch resource."). */
export async function ask(path, options) {
  const answer = await api.fetchApi(`/fewstep/${path}`, { cache: "no-store", ...options }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error(unanswered());
  });
  const said = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return { error: answer.ok ? anothers() : undefined };
  });
  if (!answer.ok || said.error) throw new Error(said.error ?? `the server answered ${answer.status}`);
  return said;
}

function place(run) {
  return `runs/${encodeURIComponent(run)}`;
}

/** text -> whether a run may be called so; undefined until the server, whose rule it is, has answered. */
const names = new Map();

/** Whether a run may be called so; undefined while nobody knows. A run of another name is asked for in vain, and the console says so
 *  at every key of a name that is being typed. */
export function isName(text) {
  if (connected && !names.has(text)) {
    names.set(text, undefined);
    ask(`name?${new URLSearchParams({ text })}`).then(({ allowed }) => names.set(text, allowed), () => names.set(text, true)); // the run itself says why
  }
  return names.get(text);
}

/** The state of a run, and its curves after an iteration. */
export function fetchRun(run, { after = -1, signal } = {}) {
  return ask(`${place(run)}?after=${after}`, { signal });
}

export function previewUrl(run, iteration) {
  const again = anew.has(run) ? `&anew=${anew.get(run)}` : "";
  return api.apiURL(`/fewstep/${place(run)}/preview?iteration=${iteration}${again}`);
}

/** run name -> how often another run has got it: a page keeps pictures by their address. */
const anew = new Map();

/** Pictures of a run of this name are others from now on. */
export function isAnother(run) {
  anew.set(run, (anew.get(run) ?? 0) + 1);
}

/** Pages of the pack's documentation, by name. */
export const GUIDES = { "choose-a-method": "Choose a method", glossary: "Words", examples: "Examples" };

export function guideUrl(name) {
  return new URL(`guide.html?docs/${name}.md`, import.meta.url).href;
}

/** What the columns of a preview are of: {columns, prompts}. */
export function fetchPreviewAbout(run, iteration) {
  return ask(`${place(run)}/preview/about?iteration=${iteration}`);
}

/** Of a picture that a node of the graph wrote: {filename, subfolder, type}. */
export function viewUrl(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

/** Asks whoever trains the run to stop after its next checkpoint. */
export function stopAfterCheckpoint(run) {
  return post(`${place(run)}/stop`);
}

export function fetchRuns({ signal } = {}) {
  return ask("runs", { signal });
}

/** The editor's graph that a run was last started from. */
export function fetchWorkflow(run) {
  return ask(`${place(run)}/workflow`);
}

/** Removes a run's folder for good. */
export function deleteRun(run) {
  return post(`${place(run)}/delete`);
}

/** Keeps of a damaged run's metrics the lines that are whole. */
export function repairRun(run) {
  return post(`${place(run)}/repair`);
}

/** Calls a run otherwise. */
export function renameRun(run, name) {
  return post(`${place(run)}/rename`, { name });
}

/** Writes a run of the same settings, data and workflow that is not begun yet. */
export function cloneRun(run, name) {
  return post(`${place(run)}/clone`, { name });
}

export function keepNote(run, note) {
  return post(`${place(run)}/note`, { note });
}

function post(path, given = {}) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given) });
}

/** Asks whoever trains the run to save its state and stop now; other jobs of the queue are not touched. */
export function cancelRun(run) {
  return post(`${place(run)}/cancel`);
}
