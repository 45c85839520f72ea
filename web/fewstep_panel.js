// Puts the training panel on the nodes that train or watch a run, and on subgraphs with such nodes inside.
import { app } from "../../scripts/app.js";
import "./fewstep_panel_element.js";
import { AROUND, addElement, every, fit, textScale, whileThere } from "./fewstep_elements.js";
import { EVERY, METRICS, PHASE, STATE, TRAINING, isAt, isName, isOf, runNamed, subscribe } from "./fewstep_service.js";
import { places, setting } from "./fewstep_wires.js";
import { say } from "./fewstep_words.js";

const WATCHES = "FewStepWatchRun";
const NODES = [...TRAINING, WATCHES];
const PLAN_ONLY = "plan only"; // of Make It Fast's do
const LARGE = 400;
const SMALL = 60;
const MILLISECONDS_BETWEEN_LOOKS = 300;

/** within: the subgraph's node that it is put on in the place of the one inside, which is not seen beside it. */
function addPanel(node, within = null) {
  const panel = document.createElement("fewstep-panel");
  const on = within ?? node;
  let height = SMALL;
  let told = null; // the run that is told of this node
  panel.watching = node.comfyClass === WATCHES;
  panel.away = within !== null;
  if (!panel.watching) panel.onresume = () => app.queuePrompt(0, 1);
  panel.onsize = () => {
    if (!panel.offsetWidth) return; // it is not laid out yet
    const needed = panel.large ? LARGE + panel.saying / textScale() : Math.max(SMALL, (panel.small + AROUND) / textScale());
    if (needed === height) return;
    height = needed;
    fit(on);
  };
  addElement(on, "training", panel, { label: say("Training"), height: () => height });
  new ResizeObserver(panel.onsize).observe(panel); // a narrower node has its sentence in more lines
  whileThere(on, () => subscribe(EVERY, (kind, data) => {
    if ([STATE, METRICS, PHASE].includes(kind) && isOf(data, node, within)) told = data.run;
  }));
  every(MILLISECONDS_BETWEEN_LOOKS, on, () => {
    const named = runNamed(node, within);
    const known = named === null || isName(named);
    const planning = setting(node, "do", within)?.value === PLAN_ONLY;
    const waiting = isAt(app.runningNodeId, node, within);
    panel.run = known ? named ?? told : null;
    panel.said = (isAlone(within) && node.fewstepText) || {};
    panel.now = { nameless: known === false, unsure: known === undefined, planning, waiting };
  });
}

/** Whether what a node inside says is of this place, and of no other. */
function isAlone(within) {
  return !within || places(within.subgraph).length === 1;
}

/** Those that have a panel, in subgraphs of a subgraph too. */
function inside({ nodes }) {
  return nodes.flatMap((node) => (node.subgraph ? inside(node.subgraph) : NODES.includes(node.comfyClass) ? [node] : []));
}

app.registerExtension({
  name: "comfyuifewstep.TrainingPanel",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addPanel(node);
    if (node.subgraph) for (const one of inside(node.subgraph)) addPanel(one, node);
  },
});
