// Where an input's value comes from in what would be queued, past what only hands it on: nodes of the editor alone (reroutes, Set and
// Get), bypassed nodes, the edges of subgraphs, and links that nobody sees.
import { app } from "../../scripts/app.js";
import { allNodes } from "./fewstep_elements.js";

const MOST = 100; // that hand on: a graph may have a circle
const MUTED = 2;
const BYPASSED = 4;
const FROM_OUTSIDE = -10; // the number by which links inside a subgraph name its inputs
const ANYTHING = ["*", "", 0];

/** {node, slot}: the node that an input's value comes from, and by which output; null where none would come. */
export function source(node, slot, type = node.inputs?.[slot]?.type, left = MOST) {
  const link = left && linkTo(node, slot);
  return link ? along(node.graph, link, type, left - 1) : null;
}

/** The node behind an input of a name. */
export function nodeBehind(node, name) {
  return source(node, node.inputs?.findIndex((slot) => slot.name === name) ?? -1)?.node ?? null;
}

/** Those behind all inputs of a node. */
export function nodesBehind(node) {
  return (node.inputs ?? []).map((_, slot) => source(node, slot)?.node).filter(Boolean);
}

/** The widget whose value would be queued for an input of a name: the node's own, or the one of the subgraph around it that stands for
 *  it; null where the value comes over a link. within: the node that it is looked at in, of a subgraph that several nodes stand for. */
export function setting(node, name, within = null, left = MOST) {
  const slot = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
  const link = slot < 0 ? null : linkTo(node, slot);
  if (!link) return node.widgets?.find((widget) => widget.name === name) ?? null;
  const outside = left && Number(link.origin_id) === FROM_OUTSIDE && around(node.graph, within);
  const input = outside && outside.inputs[link.origin_slot];
  return input ? setting(outside, input.widget?.name ?? input.name, within, left - 1) : null;
}

/** What is set for a widget: where it is queued from, or where that comes over a link what is typed on the node. */
export function valueSet(node, own) {
  return (setting(node, own.name) ?? own).value;
}

/** The nodes that a node's method comes through, its own last: before it stand those that only hand it on (One Expert's Part). */
export function methodsBehind(node) {
  const found = [];
  for (let before = nodeBehind(node, "method"); before && !found.includes(before); before = nodeBehind(before, "method")) found.push(before);
  return found;
}

function linkTo(node, slot) {
  const { link = null } = node.inputs?.[slot] ?? {};
  return link === null ? unseen(node, slot) : node.graph.getLink?.(link) ?? node.graph.links[link];
}

/** A link that Use Everywhere makes in what is queued alone, and that it notes in the graph; of a graph that was saved there, while its
 *  node still is one that acts. */
function unseen(node, slot) {
  if (!app.ue_modified_prompt) return null;
  const found = node.graph?.extra?.ue_links?.find((one) => String(one.downstream) === String(node.id) && one.downstream_slot === slot);
  const acts = found && node.graph.getNodeById(found.controller)?.mode === 0;
  return acts ? { origin_id: found.upstream, origin_slot: found.upstream_slot } : null;
}

function along(graph, { origin_id: id, origin_slot: slot }, type, left) {
  if (Number(id) === FROM_OUTSIDE) {
    const outside = around(graph);
    return outside ? source(outside, slot, type, left) : null;
  }
  const node = graph.getNodeById(id);
  return node ? output(node, slot, type, left) : null;
}

/** The node that a graph is the inside of: the first, unless it is looked at within another. */
function around(graph, within = null) {
  return within?.subgraph === graph ? within : places(graph)[0];
}

/** The nodes that a graph is the inside of. */
export function places(graph) {
  return allNodes().filter(({ subgraph }) => subgraph === graph);
}

function output(node, slot, type, left) {
  if (node.mode === MUTED) return null;
  if (node.mode === BYPASSED) return source(node, passing(node, slot, type), type, left);
  if (node.subgraph) return inside(node.subgraph, slot, type, left);
  return node.isVirtualNode ? ofEditor(node, slot, type, left) : { node, slot };
}

function inside(subgraph, slot, type, left) {
  const link = subgraph.outputNode?.slots[slot]?.getLinks()[0];
  return link && left ? along(subgraph, link, type, left - 1) : null;
}

/** Set and Get find each other by a name; asked for their link, they complain where there is none. What has no inputs is itself the value
 *  (Primitive). */
function ofEditor(node, slot, type, left) {
  if (node.findSetter) {
    const setter = node.findSetter(node.graph);
    return setter ? source(setter, 0, type, left) : null;
  }
  return node.inputs?.length ? source(node, Math.min(slot, node.inputs.length - 1), type, left) : { node, slot };
}

/** The input of a bypassed node whose value an output has, as editors choose it. */
function passing({ inputs = [] }, slot, type) {
  if (ANYTHING.includes(type)) return Math.min(slot, inputs.length - 1);
  return inputs[slot]?.type === type ? slot : inputs.findIndex((input) => input.type === type);
}
