// Lists of students, recipes and model files are as they are now once a run has ended or changed, or a student was saved: editors ask
// for them at their start.
import { api } from "../../scripts/api.js";
import { allNodes } from "./fewstep_elements.js";
import { STATE } from "./fewstep_service.js";
import { setting } from "./fewstep_wires.js";

const SAVING = ["FewStepSaveStudent", "FewStepSaveStudentLoRA"];
const KINDS = [
  ...SAVING,
  ...["FewStepLoadStudent", "FewStepApplyRecipe", "FewStepLoRAStudent", "FewStepMakeItFast"],
  // the host's own, with which students are loaded like any other file
  ...["LoraLoader", "LoraLoaderModelOnly", "CheckpointLoaderSimple", "UNETLoader"],
];

/** Input name -> list, of a declaration's inputs. */
function listsOf({ required = {}, optional = {} }) {
  const lists = Object.entries({ ...required, ...optional }).map(([name, [list]]) => [name, list]);
  return Object.fromEntries(lists.filter(([, list]) => Array.isArray(list)));
}

/** Of nodes to come, whose lists are the declaration's own, and of those that are there, whatever is chosen in them. */
async function refresh(kind) {
  const known = listsOf(LiteGraph.registered_node_types[kind].nodeData.input);
  const told = listsOf((await (await api.fetchApi(`/object_info/${kind}`, { cache: "no-store" })).json())[kind].input);
  for (const [name, list] of Object.entries(told)) {
    if (JSON.stringify(list) === JSON.stringify(known[name])) continue;
    known[name].splice(0, Infinity, ...list);
    for (const node of allNodes().filter(({ comfyClass }) => comfyClass === kind)) {
      const own = node.widgets.find((one) => one.name === name);
      for (const widget of [own, setting(node, name)]) if (widget?.options?.values) widget.options.values = [...list];
    }
  }
}

function refreshAll() {
  const known = KINDS.filter((kind) => LiteGraph.registered_node_types[kind]?.nodeData);
  Promise.all(known.map(refresh)).catch((error) => console.warn(`ComfyUI-FewStep: ${error.message}`));
}

api.addEventListener(STATE, ({ detail }) => detail.state !== "begun" && refreshAll());
api.addEventListener("executed", ({ detail }) => {
  const number = String(detail.node).split(":").at(-1); // of one inside a subgraph, behind those that it is in
  if (allNodes().some(({ id, comfyClass }) => String(id) === number && SAVING.includes(comfyClass))) refreshAll();
});
