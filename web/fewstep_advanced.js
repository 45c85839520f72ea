// Rare inputs that editors fold away ("advanced") are shown where they are set: what a template or somebody else's workflow sets would
// be seen nowhere.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "comfyuifewstep.Advanced",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FewStep")) return;
    const onConfigure = node.onConfigure;
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      for (const widget of this.widgets ?? []) {
        if (widget.options?.advanced && widget.value !== unset(this, widget.name)) widget.options.advanced = false;
      }
    };
  },
});

/** What a widget holds before anybody touches it: of a menu without a default its first choice. */
function unset({ constructor: { nodeData } }, name) {
  const [kind, about = {}] = nodeData.input.optional?.[name] ?? nodeData.input.required?.[name] ?? [];
  return about.default ?? kind?.[0];
}
