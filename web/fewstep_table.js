// Shows the table of an Evaluate Digits node on the node itself, after it has run.
import { app } from "../../scripts/app.js";

const NODE = "FewStepEvaluateDigits";

/** The cells of a Markdown table, row by row, without the ruling line. */
function cells(markdown) {
  return markdown
    .split("\n")
    .filter((line) => line.startsWith("|") && !line.startsWith("|-"))
    .map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
}

function tableElement(rows) {
  const table = document.createElement("table");
  table.style.cssText = "border-collapse: collapse; font: 11px sans-serif; color: var(--input-text, #ddd); width: 100%;";
  rows.forEach((row, i) => {
    const line = table.insertRow();
    for (const text of row) {
      const cell = document.createElement(i === 0 ? "th" : "td");
      cell.textContent = text;
      cell.style.cssText = "padding: 2px 6px; text-align: right; border-bottom: 1px solid var(--border-color, #555);";
      line.append(cell);
    }
  });
  return table;
}

function show(node, markdown) {
  if (!node.fewstepTable) {
    const element = document.createElement("div");
    element.style.overflow = "auto";
    node.fewstepTable = node.addDOMWidget("table", "fewstep_table", element, { serialize: false, hideOnZoom: false });
    node.fewstepTable.serialize = false; // a result, not a setting: it has no place in a shared workflow
  }
  node.fewstepTable.element.replaceChildren(tableElement(cells(markdown)));
  node.setSize?.([Math.max(node.size[0], 460), Math.max(node.size[1], node.computeSize()[1] + 120)]);
}

app.registerExtension({
  name: "fewstep.EvaluationTable",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) show(this, output.text.join("\n"));
    };
  },
});
