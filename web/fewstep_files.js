// Which model files stand behind a node of the graph.
import { nodesBehind, source, valueSet } from "./fewstep_wires.js";

const MODEL_FILE = /\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$/i;
const MOST = 50; // nodes that are asked: a graph may have a circle
/** In the order in which a node is taken to hand its MODEL on from: as itself, in a pipe of others' (basic pipe, context), in an input
 *  that takes anything (a switch). */
const HANDING_ON = [/^MODEL$/, /pipe|context/i, /^\*$/];

/** The place of a node's first input that takes a MODEL, of one that has it if any; -1 where it has none. */
export function modelInput(node) {
  const places = placesOf(node, HANDING_ON[0]);
  return places.find((slot) => source(node, slot)) ?? places[0] ?? -1;
}

function placesOf(node, type) {
  return (node.inputs ?? []).flatMap((slot, i) => (type.test(slot.type) ? [i] : []));
}

/** The node that a node has its MODEL from; null for one that makes it. */
export function modelBefore(node) {
  for (const type of HANDING_ON) {
    const found = placesOf(node, type).map((slot) => source(node, slot)).find(Boolean);
    if (found) return found.node;
  }
  return null;
}

/** The model files that the nodes behind this one's model name, the nearest first, one a line. */
export function filesBehind(node) {
  const files = [];
  const waiting = [source(node, modelInput(node))?.node];
  for (let i = 0; waiting.length && i < MOST; i++) {
    const before = waiting.shift();
    if (!before) continue;
    files.push(...named(before));
    waiting.push(...nodesBehind(before));
  }
  return [...new Set(files)].join("\n");
}

/** Those that make the MODEL itself, along its wire: a checkpoint, then the LoRAs on it. */
export function filesOfModel(node) {
  const files = [];
  let before = node;
  for (let i = 0; before && i < MOST; i++) {
    if (i) files.unshift(...named(before));
    before = modelBefore(before);
  }
  return files;
}

/**
 * Those that a node's widgets name; a LoRA that is off or of strength 0 is none, alone or in a row: loras.0.lora_name and
 * loras.0.strength, or one value {on, lora, strength} as rgthree's Power Lora Loader has it.
 */
function named(node) {
  const widgets = (node.widgets ?? []).map((own) => ({ name: own.name, value: valueSet(node, own) }));
  const rowOf = (name) => name.slice(0, name.lastIndexOf(".") + 1);
  const isOff = (row) => widgets.some(({ name, value }) => name === (row ? `${row}strength` : "strength_model") && value === 0);
  const inRow = (row) => (row.on === false || row.strength === 0 ? null : row.lora);
  return widgets
    .map(({ name, value }) => (value?.lora ? inRow(value) : isOff(rowOf(name)) ? null : value))
    .filter((value) => typeof value === "string" && MODEL_FILE.test(value));
}
