// The runs browser in the editor: a sidebar tab where the host has them, else a button in its menu.
import { app } from "../../scripts/app.js";
import "./fewstep_runs_element.js";
import { allNodes, isLinked, make } from "./fewstep_elements.js";
import { TRAINING, fetchWorkflow } from "./fewstep_service.js";
import { asStep } from "./fewstep_step.js";
import { nodeBehind } from "./fewstep_wires.js";
import { say } from "./fewstep_words.js";

const NAME = say("FewStep runs");
const TITLE = 40; // of a node, in pixels, with some air

/** On hosts with tabs it opens in one of its own; on others it takes the place of the graph, which the user is asked about. */
async function show(workflow, run) {
  const tabs = Boolean(app.extensionManager);
  if (!tabs && app.graph._nodes.length && !confirm(say("This takes the place of the graph in the editor. Go on?"))) throw new Error(say("left as it is"));
  await app.loadGraphData(workflow, true, true, tabFor(run));
}

/** Its name, unless the user has a workflow of that name, or has opened this one before: the editor would open that instead. */
function tabFor(run) {
  const name = `${run} (run)`;
  return app.extensionManager?.workflow?.getWorkflowByPath?.(`workflows/${name}.json`) ? null : name;
}

async function openWorkflow(run) {
  await show(await fetchWorkflow(run), run);
}

/** Opens the run's workflow and queues it: the run goes on from its last state. */
async function resume(run) {
  const workflow = await fetchWorkflow(run);
  if (isForATerminal(workflow)) throw new Error(say("Its workflow leaves the training to a terminal: Copy command gives what goes on with it there."));
  await show(workflow, run);
  await app.queuePrompt(0, 1);
}

/** Whether a workflow only writes a run that another process trains; its nodes may be in subgraphs. */
function isForATerminal({ nodes = [], definitions = {} }) {
  const types = [...nodes, ...(definitions.subgraphs ?? []).flatMap((one) => one.nodes ?? [])].map(({ type }) => type);
  return types.includes("FewStepWriteRun") && !types.some((type) => TRAINING.includes(type));
}

/** A Load Distilled Student node with this run, in the middle of what is seen but over no other node, and selected. */
function loadStudent(run) {
  asStep(() => addStudent(run));
}

function addStudent(run) {
  const node = LiteGraph.createNode("FewStepLoadStudent");
  const graph = app.canvas.graph ?? app.graph; // the one that is seen, which may be a subgraph
  const { offset, scale } = app.canvas.ds;
  const { clientWidth, clientHeight } = app.canvas.canvas;
  node.pos = [clientWidth / 2 / scale - offset[0] - 150, clientHeight / 2 / scale - offset[1] - 50];
  while (graph._nodes.some((other) => over(node, other))) node.pos = [node.pos[0], node.pos[1] + TITLE];
  graph.add(node);
  const widget = node.widgets.find(({ name }) => name === "student");
  const value = `${run} (run)`;
  if (!widget.options.values.includes(value)) widget.options.values.push(value); // the page is older than the run
  widget.value = value;
  app.canvas.selectNode(node);
  graph.setDirtyCanvas(true, true);
}

/** Calls a run so in the graph too, which would else train it anew under the name of before. */
function renamed(from, to) {
  const isStudent = (value) => [" (", ", "].some((mark) => `${value}`.startsWith(from + mark)) && `${value}`.endsWith(" (run)");
  const names = ({ name, value }) => (name === "run_name" ? value === from : isStudent(value));
  const nodes = allNodes();
  const ours = nodes.filter(({ comfyClass }) => comfyClass?.startsWith("FewStep"));
  const outside = nodes.filter((node) => node.isSubgraphNode?.()); // where what a subgraph asks for is given
  const own = [...ours, ...outside].flatMap((node) => node.widgets ?? []).filter(names);
  const given = ours.filter((node) => isLinked(node, "run_name")).flatMap((node) => nodeBehind(node, "run_name")?.widgets ?? []);
  const widgets = new Set([...own, ...given.filter(({ value }) => value === from)]);
  if (widgets.size) asStep(() => widgets.forEach((widget) => (widget.value = to + widget.value.slice(from.length))));
}

/** Whether two nodes lie on each other, each with the title above it. */
function over(one, other) {
  const apart = (i, above) => one.pos[i] + one.size[i] < other.pos[i] - above || other.pos[i] + other.size[i] < one.pos[i] - above;
  return !apart(0, 0) && !apart(1, TITLE);
}

function makeRuns() {
  const runs = make("fewstep-runs");
  runs.editor = { openWorkflow, loadStudent, resume, renamed };
  return runs;
}

function addTab() {
  app.extensionManager.registerSidebarTab({
    id: "fewstep-runs", icon: "pi pi-bolt", title: NAME, tooltip: NAME, type: "custom",
    render: (place) => place.replaceChildren(makeRuns()),
  });
}

function addMenuEntry() {
  const dialog = make("dialog", { on: { close: () => dialog.querySelector("fewstep-runs")?.remove() } });
  dialog.style.cssText = "width: min(34rem, 95vw); height: 85vh; padding: 0; border: 1px solid var(--border-color);";
  const close = make("button", { type: "button", textContent: say("Close"), on: { click: () => dialog.close() } });
  close.style.cssText = "position: absolute; right: 0.8rem; bottom: 0.8rem; z-index: 1; font: inherit; font-size: 0.8rem;";
  dialog.append(close);
  const open = () => {
    dialog.prepend(makeRuns());
    dialog.showModal();
  };
  app.ui.menuContainer.append(make("button", { type: "button", textContent: NAME, on: { click: open } }), dialog);
}

app.registerExtension({
  name: "comfyuifewstep.Runs",
  setup() {
    if (app.extensionManager?.registerSidebarTab) addTab();
    else addMenuEntry();
  },
});
