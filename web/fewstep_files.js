// Which model files stand behind a node of the graph.
const MODEL_FILE = /\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$/i;
const MOST = 50; // nodes that are asked: a graph may have a circle

/** The place of a node's first input that takes a MODEL; -1 where it has none. */
export function modelInput(node) {
  return node.inputs?.findIndex((slot) => slot.type === "MODEL") ?? -1;
}

/** The model files that the nodes behind this one's model name, the nearest first, one a line. */
export function filesBehind(node) {
  const files = [];
  const waiting = [node.getInputNode(modelInput(node))];
  for (let i = 0; waiting.length && i < MOST; i++) {
    const before = waiting.shift();
    if (!before) continue;
    files.push(...named(before));
    waiting.push(...(before.inputs ?? []).map((_, slot) => before.getInputNode(slot)));
  }
  return [...new Set(files)].join("\n");
}

/** Those that make the MODEL itself, along its wire: a checkpoint, then the LoRAs on it. */
export function filesOfModel(node) {
  const files = [];
  let before = node;
  for (let i = 0; before && i < MOST; i++) {
    if (i) files.unshift(...named(before));
    before = modelInput(before) < 0 ? null : before.getInputNode(modelInput(before));
  }
  return files;
}

/** Those that a node's widgets name; a LoRA of strength 0 is none. */
function named(node) {
  const off = node.widgets?.find(({ name }) => name === "strength_model")?.value === 0;
  return (node.widgets ?? []).map(({ value }) => value).filter((value) => !off && MODEL_FILE.test(value));
}
