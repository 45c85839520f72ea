// Shows, on the nodes that make a schedule, the steps that it means, as soon as a widget changes.
import { app } from "../../scripts/app.js";
import "./fewstep_schedule_element.js";
import { addElement, every, isLinked } from "./fewstep_elements.js";

const HEIGHT = 215;
const CHOSEN = "FewStep schedule shown for"; // in the node's properties, so that a saved graph keeps it
const MILLISECONDS_BETWEEN_LOOKS = 200;
const NODES = {
  FewStepSchedule: { route: "schedule", inputs: ["schedule", "steps", "original_steps", "strength", "shift", "values"] },
  FewStepApplyRecipe: { route: "recipe", inputs: ["recipe", "file"] },
};
const KINDS = {
  FewStepConsistencyModel: "consistency",
  ModelSamplingSD3: "flow3",
  ModelSamplingFlux: "flux",
  ModelSamplingContinuousEDM: "consistency",
};

/** The kind of model that the nodes before this one tell of; Stable Diffusion where they tell nothing. */
function kindOf(node) {
  let before = node;
  for (let i = 0; before && i < 50; i++) {
    if (KINDS[before.type]) return KINDS[before.type];
    const input = before.inputs?.findIndex((slot) => slot.type === "MODEL") ?? -1;
    before = input < 0 ? null : before.getInputNode(input);
  }
  return "sd";
}

function look(node, element, { route, inputs }) {
  const linked = inputs.filter((name) => isLinked(node, name));
  const values = Object.fromEntries(inputs.map((name) => [name, node.widgets.find((widget) => widget.name === name)?.value ?? ""]));
  if (route === "schedule") values.model = node.properties[CHOSEN] ?? kindOf(node);
  const note = linked.length ? `${linked.join(", ")}: comes over a link; shown with the value typed here.` : "";
  element.show(route, values, { choosable: route === "schedule", note });
}

function addPreview(node, kind) {
  const element = document.createElement("fewstep-schedule");
  element.onchoice = (model) => (node.properties[CHOSEN] = model);
  addElement(node, "steps", element, { height: () => HEIGHT });
  every(MILLISECONDS_BETWEEN_LOOKS, node, () => element.isConnected && look(node, element, kind));
}

app.registerExtension({
  name: "fewstep.SchedulePreview",
  nodeCreated(node) {
    const kind = NODES[node.comfyClass];
    if (kind) addPreview(node, kind);
  },
});
