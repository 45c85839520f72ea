// Shows, on a Compare node that has run, both pictures under a slider and how near they are.
import { app } from "../../scripts/app.js";
import "./fewstep_compare.js";
import { addElement, fit, make, showAfterRunning } from "./fewstep_elements.js";
import { viewUrl } from "./fewstep_service.js";

const HEIGHT = 320;

function addComparison(node) {
  const compared = make("fewstep-compare");
  compared.overlaid = true;
  addElement(node, "comparison", compared, { height: () => HEIGHT });
  fit(node);
  return compared;
}

function show(node, { comparison, text }) {
  node.fewstepComparison ??= addComparison(node);
  node.fewstepComparison.address = viewUrl(comparison[0]);
  node.fewstepComparison.said = text[0];
}

app.registerExtension(showAfterRunning("comfyuifewstep.Comparison", ["FewStepCompare"], show));
