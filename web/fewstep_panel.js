// Puts the training panel on the nodes that train or watch a run.
import { app } from "../../scripts/app.js";
import "./fewstep_panel_element.js";
import { AROUND, addElement, every, fit, textScale, whileThere } from "./fewstep_elements.js";
import { EVERY, METRICS, PHASE, STATE, TRAINING, isName, isOf, runNamed, subscribe } from "./fewstep_service.js";
import { setting } from "./fewstep_wires.js";
import { say } from "./fewstep_words.js";

const NODES = [...TRAINING, "FewStepWatchRun"];
const PLAN_ONLY = "plan only"; // of Make It Fast's do
const LARGE = 400;
const SMALL = 60;
const MILLISECONDS_BETWEEN_LOOKS = 300;

function addPanel(node) {
  const panel = document.createElement("fewstep-panel");
  let height = SMALL;
  let told = null; // the run that is told of this node
  panel.watching = node.comfyClass === "FewStepWatchRun";
  if (!panel.watching) panel.onresume = () => app.queuePrompt(0, 1);
  panel.onsize = () => {
    if (!panel.offsetWidth) return; // it is not laid out yet
    const needed = panel.large ? LARGE : Math.max(SMALL, (panel.small + AROUND) / textScale());
    if (needed === height) return;
    height = needed;
    fit(node);
  };
  addElement(node, "training", panel, { label: say("Training"), height: () => height });
  new ResizeObserver(panel.onsize).observe(panel); // a narrower node has its sentence in more lines
  whileThere(node, () => subscribe(EVERY, (kind, data) => {
    if ([STATE, METRICS, PHASE].includes(kind) && isOf(data, node)) told = data.run;
  }));
  every(MILLISECONDS_BETWEEN_LOOKS, node, () => {
    const named = runNamed(node);
    const known = named === null || isName(named);
    const planning = setting(node, "do")?.value === PLAN_ONLY;
    panel.run = known ? named ?? told : null;
    panel.said = node.fewstepText ?? {};
    panel.now = { nameless: known === false, unsure: known === undefined, planning, waiting: isRunning(node) };
  });
}

/** Whether the graph's execution is at this node, which may be inside a subgraph. */
function isRunning({ id }) {
  return String(app.runningNodeId).split(":").at(-1) === String(id);
}

app.registerExtension({
  name: "comfyuifewstep.TrainingPanel",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addPanel(node);
  },
});
