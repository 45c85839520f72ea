// Shows, on the nodes that choose steps, what these are, as soon as a widget changes.
import { app } from "../../scripts/app.js";
import "./fewstep_schedule_element.js";
import { addElement, allNodes, every } from "./fewstep_elements.js";
import { asStep } from "./fewstep_step.js";
import { say } from "./fewstep_words.js";
import { filesBehind, filesOfModel, modelBefore, modelInput } from "./fewstep_files.js";
import { methodsBehind, setting, valueSet } from "./fewstep_wires.js";

const HEIGHTS = { schedule: 215, recipe: 215, method: 260 };
const CHOSEN = "FewStep schedule shown for"; // in the node's properties, so that a saved graph keeps it
const MILLISECONDS_BETWEEN_LOOKS = 200;
const ROUTES = {
  FewStepSchedule: "schedule",
  FewStepApplyRecipe: "recipe",
  FewStepProgressiveDistillation: "method",
  FewStepGuidanceDistillation: "method",
  FewStepConsistencyDistillation: "method",
  FewStepConsistencyTraining: "method",
  FewStepDistributionMatching: "method",
};
const KINDS = {
  FewStepConsistencyModel: () => "consistency",
  ModelSamplingSD3: ofShift,
  ModelSamplingAuraFlow: ofShift,
  ModelSamplingFlux: () => "flux",
  ModelSamplingContinuousEDM: () => "consistency",
};
const SHIFTS = { 1: "flow", 3: "flow3", 8: "flow8" };

// what files of these kinds are usually called; no part of another word (a swan is no Wan), the first that fits
const CALLED = [
  [/(?<![a-z])z.?image/i, "flow3"],
  [/(?<![a-z])(sd|stable.?diffusion).?3/i, "flow3"],
  [/(?<![a-z])wan(?![a-z])/i, "flow8"],
  [/(?<![a-z])qwen.?image/i, "flux"],
  [/(?<![a-z])flux.?2/i, "flux2"],
  [/(?<![a-z])flux.*schnell/i, "flow"],
  [/(?<![a-z])flux/i, "flux"],
];

/** A flow model at the shift that its node sets; at 3 where that comes over a link. */
function ofShift(node) {
  const shift = setting(node, "shift")?.value ?? 3;
  return shift > 0 ? SHIFTS[shift] ?? `flow at ${Number(shift.toFixed(4))}` : "flow3";
}

/** The node whose model a node is about: itself, or of a method the first that takes it, past those that only hand it on (One Expert's
 *  Part). */
function taught(node) {
  if (modelInput(node) >= 0) return node;
  return allNodes().find((one) => modelInput(one) >= 0 && methodsBehind(one).includes(node));
}

/** The kind of model that the nodes before this one tell of, or before the one that a method goes to, or its file; else Stable
 *  Diffusion. */
function kindOf(node) {
  const start = taught(node);
  let before = start;
  for (let i = 0; before && i < 50; i++) {
    if (KINDS[before.type]) return KINDS[before.type](before);
    before = modelBefore(before);
  }
  return start ? calledSo(filesOfModel(start)) : "sd";
}

/** The checkpoint comes first, then the LoRAs on it. */
function calledSo(files) {
  const names = files.map((file) => file.split(/[\\/]/).at(-1));
  return names.flatMap((name) => CALLED.filter(([pattern]) => pattern.test(name))).map(([, kind]) => kind)[0] ?? "sd";
}

function look(node, element, { route, inputs }) {
  const linked = inputs.filter(({ name }) => !setting(node, name)).map(({ name }) => name);
  const values = { node: node.comfyClass, ...Object.fromEntries(inputs.map((own) => [own.name, valueSet(node, own)])) };
  if (route === "recipe") values.files = filesBehind(node);
  const choosable = route !== "recipe"; // which says its kind of model itself
  if (choosable) values.model = node.properties[CHOSEN] ?? kindOf(node);
  const note = linked.length ? say`${linked.join(", ")}: comes over a link; shown with the value typed here.` : "";
  element.show(route, values, { choosable, note });
}

function addPreview(node, route) {
  const element = document.createElement("fewstep-schedule");
  const inputs = [...node.widgets];
  element.onchoice = (model) => asStep(() => (node.properties[CHOSEN] = model));
  addElement(node, "preview", element, { height: () => HEIGHTS[route] });
  every(MILLISECONDS_BETWEEN_LOOKS, node, () => element.isConnected && look(node, element, { route, inputs }));
}

app.registerExtension({
  name: "comfyuifewstep.SchedulePreview",
  nodeCreated(node) {
    const route = ROUTES[node.comfyClass];
    if (route) addPreview(node, route);
  },
});
