// Shows what a node says in words, a command or a file's place, on the node itself, with a button that copies it.
import { app } from "../../scripts/app.js";

const NODES = ["FewStepWriteRun", "FewStepSaveStudent", "FewStepSaveStudentLoRA"];

function textElement() {
  const box = document.createElement("div");
  box.style.cssText = "display: flex; gap: 6px; align-items: flex-start; width: 100%;";
  const text = document.createElement("textarea");
  text.readOnly = true;
  text.rows = 3;
  text.setAttribute("aria-label", "What this node says");
  text.style.cssText =
    "flex: 1; resize: none; font: 11px monospace; background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);" +
    " border: 1px solid var(--border-color, #555);";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    text.select();
    // the clipboard is closed to pages that come over plain HTTP from another machine
    const copied = navigator.clipboard ? await navigator.clipboard.writeText(text.value).then(() => true, () => false) : false;
    copy.textContent = copied || document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  box.append(text, copy);
  const widget = document.createElement("div"); // whose own display the editor of 2024 sets
  widget.append(box);
  return widget;
}

function show(node, said) {
  if (!node.fewstepText) {
    node.fewstepText = node.addDOMWidget("said", "fewstep_text", textElement(), { serialize: false, hideOnZoom: false });
    node.fewstepText.serialize = false; // a result, not a setting: it has no place in a shared workflow
  }
  node.fewstepText.element.querySelector("textarea").value = said;
  node.setSize?.([Math.max(node.size[0], 420), Math.max(node.size[1], node.computeSize()[1] + 40)]);
}

app.registerExtension({
  name: "fewstep.Text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) show(this, output.text.join("\n"));
    };
  },
});
