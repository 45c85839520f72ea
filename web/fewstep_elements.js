// Small helpers of all our elements: making them, their common look, and numbers as words.
import { app } from "../../scripts/app.js";

/** An element with properties and children; `on` holds its listeners, `aria` its ARIA attributes. */
export function make(tag, { on = {}, aria = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children);
  return made;
}

/** Colour and dashes of up to five curves in one chart, told apart without colours too. */
export const CURVES = [["--curve-1"], ["--curve-2", [10, 4]], ["--curve-3", [3, 3]], ["--curve-4", [10, 3, 3, 3]], ["--curve-1", [1, 5]]];

/** The host's own colours, with those of its dark theme where a host does not define one. Sizes follow its text. */
export const STYLE = `
  :host { display: block; box-sizing: border-box; width: 100%; height: 100%; min-width: 0; min-height: 0;
    overflow: clip; overflow-clip-margin: 3px; /* as wide as what is drawn around a focused button */
    --ink: var(--input-text, #ddd); --soft: color-mix(in srgb, var(--ink) 78%, var(--ground)); --line: var(--border-color, #4e4e4e);
    --ground: var(--comfy-input-bg, #222); --menu: var(--comfy-menu-bg, #353535);
    --failed: color-mix(in srgb, var(--error-text, #f44) 40%, var(--ink)); --student: #e8590c; --teacher: #868e96;
    --curve-1: #3d84f7; --curve-2: #12a150; --curve-3: #c264d9; --curve-4: #e8590c;
    color: var(--ink); font: max(12px, 0.75rem)/1.4 system-ui, sans-serif; }
  :host([hidden]) { display: none; } .error, .failed { color: var(--failed); }
  .error, .failed, .sentence { overflow-wrap: anywhere; } /* paths are longer than a panel is wide */
  * { box-sizing: border-box; }
  button, select, input, textarea { font: inherit; color: var(--ink); background: var(--ground); border: 1px solid var(--line);
    border-radius: 4px; padding: 0.2em 0.6em; cursor: pointer; }
  button:hover:not(:disabled) { border-color: var(--ink); }
  button:disabled { opacity: 0.5; cursor: default; }
  button[aria-pressed="true"] { background: var(--ink); color: var(--ground); border-color: var(--ink); }
  :focus-visible { outline: 2px solid var(--student); outline-offset: 1px; }
  [hidden] { display: none !important; }
  .row { display: flex; flex-wrap: wrap; gap: 0.4em; align-items: center; }
  .soft { color: var(--soft); }
  .heard { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;

/** What editors leave free above and below an element on a node, together. */
export const AROUND = 20;

let added = 0; // elements so far, on all nodes

/** An element of ours, whose shadow keeps its look from the page's and the page's from it. */
export function define(name, kind) {
  if (!customElements.get(name)) customElements.define(name, kind);
}

/** Puts an element on a node, in every editor since 2024, and takes all of it away with the node. It is no setting, and stays on
 *  its node where an editor shows settings beside the graph too. Keys that are pressed in it do nothing to the graph. label: what
 *  an app calls it. */
export function addElement(node, name, element, { label = name, height }) {
  keepKeys(element);
  const options = { serialize: false, hideOnZoom: false, hideInPanel: true, onDraw: () => noteDrawn(node),
    getMinHeight: () => textScale() * height() };
  // of a type of its own: where undo makes a node anew, Nodes 2.0 would leave the old one's element in the place of one of its type
  const widget = node.addDOMWidget(name, `fewstep_${name}_${++added}`, element, options);
  if (node.subgraph) keepOn(node, widget);
  widget.serialize = false;
  widget.label = label;
  if (!node.graph || node.subgraph) grow(node); // while it is made: its size was chosen before
  keepGiven(node);
  atRemoval(node, () => widget.onRemove?.()); // the editor of 2024 leaves a listener on the document otherwise
  return widget;
}

/** Older editors list on a subgraph's node what stands for a setting inside alone: as it is asked, or anew when it is configured. */
function keepOn(node, widget) {
  const { onConfigure } = node;
  const listed = Object.getOwnPropertyDescriptor(node, "widgets");
  const withOurs = (widgets) => (widgets.includes(widget) ? widgets : [...widgets, widget]);
  if (listed?.get) Object.defineProperty(node, "widgets", { ...listed, get: () => withOurs(listed.get.call(node)) });
  else node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    node.widgets = withOurs(node.widgets);
  };
}

/** Keys that are pressed in an element do nothing to the graph, and what is undone, copied or pasted in a text of it is that
 *  text: the editor sees no field through our shadow, and takes an element for one whose type is so, or
 *  (later ones) that says of itself that it is edited. */
export function keepKeys(element) {
  element.addEventListener("keydown", (event) => {
    const theEditors = (event.ctrlKey || event.metaKey) && !(isText(event) && EDITING.includes(event.key.toLowerCase()));
    if (!theEditors) event.stopPropagation();
  });
  for (const kind of ["copy", "cut", "paste"]) {
    element.addEventListener(kind, (event) => isText(event) && event.stopPropagation());
  }
  const edited = () => isField(element.shadowRoot?.activeElement);
  Object.defineProperty(element, "type", { configurable: true, get: () => (edited() ? "textarea" : undefined) });
  Object.defineProperty(element, "isContentEditable", { configurable: true, get: edited });
}

const EDITING = ["a", "c", "v", "x", "y", "z"];

function isText(event) {
  return isField(event.composedPath()[0]);
}

function isField(element) {
  return element?.localName === "textarea" || (element?.localName === "input" && ["text", "search"].includes(element.type));
}

/** Marks an element that an editor lays out as elements, on a node (Nodes 2.0) or in an app, where nodes are not seen: both grow
 *  with what is in them. */
export function markLaidOut(element) {
  element.toggleAttribute("in-app", element.closest("[data-widget-key]") !== null);
  element.toggleAttribute("laid-out", element.closest("[data-node-id], [data-widget-key]") !== null);
}

/** Whether a text is on the clipboard now, which is closed to pages that come over plain HTTP from another machine. */
export async function copied(text) {
  return navigator.clipboard ? navigator.clipboard.writeText(text).then(() => true, () => false) : false;
}

/** How much larger than usual the text of the page is set. */
export function textScale() {
  return Math.max(parseFloat(getComputedStyle(document.documentElement).fontSize) / 16, 1);
}

/** Whether a widget's value comes over a link: the editor of 2024 turns the widget itself into an input. */
export function isLinked(node, name) {
  const slot = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
  return slot >= 0 && node.isInputConnected(slot);
}

/** Calls look again and again while the node is there: editors differ in whom they tell of changes, and by whom. */
export function every(milliseconds, node, look) {
  whileThere(node, () => {
    const timer = setInterval(() => (isLost(node) ? node.onRemoved() : look()), milliseconds);
    return () => clearInterval(timer);
  });
}

/** Calls begin when the node is in a graph, and what it returned when it is no more: of nodes that are copied, editors make others
 *  that never are in one. */
export function whileThere(node, begin) {
  const onAdded = node.onAdded;
  let leave = null;
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    leave ??= begin();
  };
  if (node.graph) leave = begin();
  atRemoval(node, () => {
    leave?.();
    leave = null;
  });
}

/** Whether a node was in a subgraph that is no more: an editor that loads another graph tells only nodes outside of it. */
function isLost({ graph }) {
  const root = graph?.rootGraph;
  return !graph || Boolean(root && root !== graph && root.subgraphs?.get(graph.id) !== graph);
}

/** Calls leave when the node is removed, after what others do then. */
function atRemoval(node, leave) {
  const onRemoved = node.onRemoved;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    leave();
  };
}

/** An extension that calls show(node, output) whenever a node of these kinds has run, and again where the editor has made the node
 *  anew, by undo or in a tab that is come back to: what was said is kept beside the graph. */
export function showAfterRunning(name, kinds, show) {
  const again = () => {
    for (const [place, output] of Object.entries(app.nodeOutputs)) {
      const node = nodeAt(place);
      if (output?.text && kinds.includes(node?.comfyClass)) show(node, output);
    }
  };
  return {
    name,
    afterConfigureGraph: again,
    onNodeOutputsUpdated: again,
    beforeRegisterNodeDef(nodeType, nodeData) {
      if (!kinds.includes(nodeData.name)) return;
      const onExecuted = nodeType.prototype.onExecuted;
      nodeType.prototype.onExecuted = function (output) {
        onExecuted?.apply(this, arguments);
        if (output?.text) show(this, output);
      };
    },
  };
}

/** The node of a number, or of one behind its subgraph's id. */
function nodeAt(place) {
  const [number, subgraph] = place.split(":").reverse();
  return (subgraph ? root().subgraphs?.get(subgraph) : root())?.getNodeById(number);
}

/** Those of the graph and of all subgraphs. */
export function allNodes() {
  return [root(), ...(root().subgraphs?.values() ?? [])].flatMap(({ _nodes }) => _nodes);
}

const root = () => app.rootGraph ?? app.graph;

/** Makes a node at least as large as what is on it now needs, and as wide as this. */
export function fit(node, width = 0) {
  const given = sizeGiven(node);
  grow(node, width);
  sizes.set(node, { given, grown: [...node.size], drawn: false });
  node.graph?.setDirtyCanvas?.(true, true);
}

function grow(node, width = 0) {
  const needed = node.computeSize();
  node.setSize?.([Math.max(node.size[0], needed[0], width), Math.max(node.size[1], needed[1])]);
}

/** node -> the size that it was made, saved or drawn with, and the one to which it then grew by itself. */
const sizes = new WeakMap();

/** Keeps in the graph the size that a node was given: one that nobody gave it would be a step to undo, made again after every
 *  undo, and the end of all that could be redone. */
function keepGiven(node) {
  if (sizes.has(node)) return;
  const { serialize, onConfigure } = node;
  const give = () => sizes.set(node, { given: [...node.size], grown: [...node.size], drawn: false });
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    give();
  };
  node.serialize = function () {
    const given = sizeGiven(node);
    sizes.set(node, { ...sizes.get(node), given }); // also one that an editor that loads a graph gives it
    return Object.assign(serialize.apply(this, arguments), { size: [...given] });
  };
  give();
}

/** An editor that draws a node makes it larger itself, until it holds what is on it. */
function noteDrawn(node) {
  const size = sizes.get(node);
  if (!size.drawn) sizes.set(node, { ...size, grown: [...node.size], drawn: true });
}

function sizeGiven(node) {
  const { given, grown } = sizes.get(node);
  return given.map((was, i) => (node.size[i] === grown[i] ? was : node.size[i]));
}

export function seconds(value) {
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export function bytes(value) {
  return value < 1e9 ? `${Math.round(value / 2 ** 20)} MiB` : `${(value / 2 ** 30).toFixed(1)} GiB`;
}

/** How far a stage's student is from its teacher, in percent; what is no number, or no stage, is null, not 0. */
export function distance({ mean_squared_distance: squared = null, teacher_mean_square: whole = null } = {}) {
  return squared === null || whole === null ? null : (100 * squared) / whole;
}

/** Three digits, however large or small. */
export function figure(value) {
  if (value === null || value === undefined) return "-";
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2) : `${Number(value.toPrecision(3))}`;
}
