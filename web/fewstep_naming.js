// Runs are named with their teacher's file until the user types a name.
import { app } from "../../scripts/app.js";
import { every } from "./fewstep_elements.js";
import { filesOfModel } from "./fewstep_files.js";
import { TRAINING } from "./fewstep_service.js";
import { methodsBehind, setting } from "./fewstep_wires.js";

const NODES = [...TRAINING, "FewStepWriteRun"];
const PROPOSED = "FewStep run name proposed"; // in the node's properties: a graph that was saved without one keeps its name
const USUAL_GOAL = "closest to my model";
const MOST_LETTERS = 60; // of 100 that a name may have
const MOST_BYTES = 150; // of 200
const DEVICE = /^(con|prn|aux|nul|com[1-9]|lpt[1-9])\./i; // Windows opens one, whatever ending follows
const MILLISECONDS_BETWEEN_LOOKS = 300;

/** "dreamy_v3 in 4 steps", or "dreamy_v3 progressive distillation"; null where no file is behind the node. */
function proposal(node) {
  const stems = filesOfModel(node).map((file) => file.split(/[\\/]/).at(-1).replace(/\.[^.]+$/, ""));
  const name = stems.join(" with ").replace(/[^\p{L}\p{M}\p{N} ._-]/gu, "-").replace(/^[^\p{L}\p{N}]+/u, "").replace(DEVICE, "$1-");
  return name ? `${cut(name)} ${purpose(node)}` : null;
}

/** Its first letters. */
function cut(name) {
  const letters = [...name].slice(0, MOST_LETTERS);
  while (new TextEncoder().encode(letters.join("")).length > MOST_BYTES) letters.pop();
  return letters.join("");
}

/** Two runs of one file that differ in it are two runs. */
function purpose(node) {
  const value = (name) => setting(node, name)?.value;
  if (value("goal")) return `in ${value("steps")} steps${value("goal") === USUAL_GOAL ? "" : ` ${value("goal").split(" ")[0]}`}`;
  const own = methodsBehind(node).find((one) => one.findInputSlot("method") < 0); // others only hand one on (One Expert's Part)
  const method = own?.comfyClass?.replace("FewStep", "") ?? "Student";
  return method.replace(/(?!^)[A-Z]/g, " $&").toLowerCase();
}

function propose(node) {
  const widget = setting(node, "run_name");
  if (!widget || widget.value !== node.properties[PROPOSED]) return;
  const name = proposal(node) ?? widget.value;
  if (name !== widget.value) node.properties[PROPOSED] = widget.value = name;
}

app.registerExtension({
  name: "comfyuifewstep.RunNames",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const widget = node.widgets.find(({ name }) => name === "run_name");
    (node.properties ??= {})[PROPOSED] = widget.value; // the editor of 2024 makes them later
    const onConfigure = node.onConfigure;
    node.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments);
      this.properties[PROPOSED] = saved.properties?.[PROPOSED];
    };
    const serialize = node.serialize;
    node.serialize = function () {
      if (node.graph) propose(node); // else what follows of a step would be a step of its own, undone alone
      return serialize.apply(this, arguments);
    };
    every(MILLISECONDS_BETWEEN_LOOKS, node, () => propose(node));
  },
});
