// Seeds of our nodes stay after a start in every editor: those of 2024 draw another one, whatever a node declares.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "comfyuifewstep.Seeds",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FewStep")) return;
    const beside = (node.widgets ?? []).flatMap((widget) => widget.linkedWidgets ?? []);
    for (const control of beside.filter((widget) => widget.options?.values?.includes?.("randomize"))) {
      control.value = "fixed"; // a graph that is loaded says its own afterwards
      control.label = "control after generate"; // where the editor takes what we declare for its name
    }
  },
});
