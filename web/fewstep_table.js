// Shows the table of an Evaluate Digits node on the node itself, after it has run.
import { app } from "../../scripts/app.js";
import { STYLE, addElement, define, fit, make, showAfterRunning } from "./fewstep_elements.js";

const HEIGHT = 120;
const WIDTH = 460;

const OWN_STYLE = `
  :host { overflow: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.15em 0.5em; text-align: right; border-bottom: 1px solid var(--line); } th { font-weight: normal; color: var(--soft); }
`;

/** The cells of a Markdown table, row by row, without the ruling line. */
function cells(markdown) {
  return markdown
    .split("\n")
    .filter((line) => line.startsWith("|") && !line.startsWith("|-"))
    .map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
}

class Table extends HTMLElement {
  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.table = make("table");
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.table);
  }

  /** Shows a Markdown table. */
  set markdown(text) {
    const row = (texts, i) => make("tr", {}, ...texts.map((textContent) => make(i ? "td" : "th", { textContent })));
    this.table.replaceChildren(...cells(text).map(row));
  }
}

function addTable(node) {
  const table = make("fewstep-table", { tabIndex: 0 });
  addElement(node, "table", table, { height: () => HEIGHT });
  fit(node, WIDTH);
  return table;
}

function show(node, { text }) {
  node.fewstepTable ??= addTable(node);
  node.fewstepTable.markdown = text.join("\n");
}

define("fewstep-table", Table);
app.registerExtension(showAfterRunning("comfyuifewstep.EvaluationTable", ["FewStepEvaluateDigits"], show));
