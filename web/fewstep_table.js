// Shows the table of a judging node, and what it says besides, on the node itself, after it has run.
import { app } from "../../scripts/app.js";
import { AROUND, STYLE, addElement, define, fit, make, showAfterRunning, textScale } from "./fewstep_elements.js";

const HEIGHTS = { FewStepEvaluateDigits: 120, FewStepStudentReport: 200 };
const MOST = 600; // in height; more is scrolled
const WIDTH = 460;

const OWN_STYLE = `
  :host { overflow: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  p { margin: 0.5em 0 0; white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; }
  th, td { padding: 0.15em 0.5em; text-align: right; border-bottom: 1px solid var(--line); } th { font-weight: normal; color: var(--soft); }
`;

/** The cells of a Markdown table, row by row, without the ruling line. */
function cells(markdown) {
  return markdown
    .split("\n")
    .filter((line) => line.startsWith("|") && !line.startsWith("|-"))
    .map((line) => line.slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim()));
}

/** What stands beside the table: what could not be measured, and where the report is. */
function rest(markdown) {
  return markdown.split("\n").filter((line) => line && !line.startsWith("|")).join("\n");
}

class Table extends HTMLElement {
  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    this.table = make("table");
    this.rest = make("p");
    this.content = make("div", {}, this.table, this.rest);
    this.shadowRoot.append(make("style", { textContent: STYLE + OWN_STYLE }), this.content);
  }

  /** Shows a Markdown table. */
  set markdown(text) {
    const row = (texts, i) => make("tr", {}, ...texts.map((textContent) => make(i ? "td" : "th", { textContent })));
    this.table.replaceChildren(...cells(text).map(row));
    this.rest.textContent = rest(text);
  }
}

function addTable(node) {
  const table = make("fewstep-table", { tabIndex: 0 });
  let height = HEIGHTS[node.comfyClass];
  addElement(node, "table", table, { height: () => height });
  fit(node, WIDTH);
  new ResizeObserver(() => {
    const needed = Math.min((table.content.offsetHeight + AROUND) / textScale(), MOST);
    if (needed <= height) return;
    height = needed; // what is missing and where the report is stand last
    fit(node, WIDTH);
  }).observe(table.content);
  return table;
}

function show(node, { text }) {
  node.fewstepTable ??= addTable(node);
  node.fewstepTable.markdown = text.join("\n");
}

define("fewstep-table", Table);
app.registerExtension(showAfterRunning("comfyuifewstep.EvaluationTable", Object.keys(HEIGHTS), show));
