// What the training panel says in words.
import { bytes, figure, seconds } from "./fewstep_elements.js";
import { unanswered } from "./fewstep_service.js";
import { say, sayName } from "./fewstep_words.js";

/** Where a run stands, as one sentence. */
export function sentence(known) {
  if (!known.connected) return unanswered();
  if (known.refusal) return known.refusal;
  if (isDuring(known)) return during(known.phase, known);
  if (known.unsure) return unknown();
  if (known.nameless)
    return say("Give run_name a name of letters, digits, spaces and . _ - which begins with a letter or digit and ends with no space or dot; of 100 letters at most, and none that Windows keeps for a device (CON, NUL).");
  if (known.run === null) return say("The training is shown here when it begins.");
  const said = { unknown, absent, prepared, written, training, stopped, finished, damaged }[known.state](known);
  const error = known.error ?? known.failure;
  if (error && known.state !== "training") return say`Stopped by an error: ${error}`;
  return known.damage ? say`${said} ${capital(known.damage)} Repair or delete it in the list of runs.` : said;
}

/** Whether that is of something that went wrong: not of a start before, while another goes on. */
export function isFailure(known) {
  if (!known.connected || known.refusal) return true;
  if (isDuring(known)) return false;
  return Boolean(known.damage || (known.state !== "training" && (known.error ?? known.failure)));
}

const isDuring = ({ phase, cancelling, cancelAsked }) => phase && !cancelling && !cancelAsked;

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The same for those who hear it: said again only when something else is the case, not at every iteration. */
export function heard(known) {
  const { live, phase, state } = known;
  if (isDuring(known) && known.connected) return during({ phase: phase.phase }, known);
  const goesOn = known.connected && !known.refusal && state === "training" && live && !known.cancelling && !known.cancelAsked;
  return goesOn && !known.stopping ? say`Training: ${stageOf(live)}` : sentence(known);
}

const stageOf = (live) => say`stage ${live.stage + 1} of ${live.stages} (${sayName(live.stage_name)})`;

const PHASES = {
  hashing: "Reading the model's weights",
  encoding: "Making the training data",
  probing: "Trying a few iterations",
  measuring: "Comparing the student with its teacher",
  exporting: "Writing the student's file",
};

const BEFORE = ["hashing", "encoding", "probing"]; // the iterations

/** What goes on before, between and after the iterations, how far it is, how long it still takes, and whether it was heard to stop. */
function during({ phase, share, seconds_left }, known) {
  const far = share ? `: ${Math.round(100 * share)} %` : "";
  const left = seconds_left === null || seconds_left === undefined ? "" : say`, ${seconds(seconds_left)} left`;
  return `${say(PHASES[phase] ?? phase)}${far}${left} ...${known.stopping ? ` ${stopFrom(phase, known)}` : ""}`;
}

/** What comes of a stop that was asked for by then. */
function stopFrom(phase, { live, iteration, iterations }) {
  if (BEFORE.includes(phase) && !iteration) return say("Stopping after the first checkpoint.");
  const done = (live?.iteration ?? iteration) >= (live?.iterations ?? iterations);
  return phase === "exporting" || (phase === "measuring" && done) ? say("All iterations are done, so it ends with this.")
    : say("Stopping after the next checkpoint.");
}

const unknown = () => "..."; // until the server has answered
// watching: the node trains nothing itself, so that what comes next is to be done elsewhere; planning: it may only plan
const absent = ({ watching, planning }) =>
  say(watching ? "There is no run of this name yet. Queue Write Run first."
    : planning ? "Not begun. Set do to train and queue the graph." : "Not begun. Queue the graph to train.");
const prepared = (known) =>
  known.watching ? absent(known) : say`${absent(known)} The training data that were made are kept, and it goes on with them.`;
const written = ({ watching, waiting }) =>
  say(watching && waiting ? "Written, and not started yet. Start it with Write Run's command in a terminal; this node waits for its student."
    : watching ? "Written, and not started yet. Start it with Write Run's command in a terminal; queue this node to wait for its student."
    : "Nothing is saved yet. Queue the graph, and it begins anew.");
const stopped = ({ iteration, iterations, watching }) => {
  const far = iterations ? say`Stopped at iteration ${iteration} of ${iterations}; its state is saved.` : say("Stopped; its state is saved.");
  return watching ? say`${far} Start the same command again, and it goes on.` : far;
};
const finished = ({ iteration, published, startLeft, watching }) => {
  const beside = published ? say` A file of the run's name is not its own and was left alone; the student is ${published}.` : "";
  const average =
    startLeft > 0.001 ? say` Of the weights that training began with, ${figure(100 * startLeft)} percent are left in the average (ema_decay).` : "";
  const next = watching ? say(" Queue this node to load its student.") : "";
  return `${iteration ? say`Finished after ${iteration} iterations.` : say("Finished.")}${next}${beside}${average}`;
};
const damaged = () => say("This run cannot be read.");

function training({ live, stopping, cancelling, cancelAsked, iteration }) {
  if (cancelling || cancelAsked) return say("Cancelling ... the state is saved first.");
  const at = live ? say`${stageOf(live)}, iteration ${live.iteration} of ${live.iterations}` : iteration ? say`iteration ${iteration}` : "";
  if (stopping) return at ? say`Stopping after the next checkpoint: ${at}` : say("Stopping after the first checkpoint.");
  return live ? say`Training: ${at}` : iteration ? say`Training, at iteration ${iteration}.` : say("Preparing the training ...");
}

/** The newest figures, each with its name. */
export function figures({ live, curves }) {
  const newest = (name) => live?.[name] ?? curves[name].at(-1);
  const said = [say`loss ${figure(newest("loss"))}`, say`x0 error ${figure(newest("x0_error"))}`, say`learning rate ${figure(newest("learning_rate"))}`];
  if (live?.seconds_left !== undefined) said.push(say`${seconds(live.seconds_left)} left`);
  if (live?.memory) said.push(say`${bytes(live.memory)} on the GPU`);
  return said;
}
