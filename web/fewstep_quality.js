// Quality over sampling steps, teacher against student, as something for the chart to draw.
import { say } from "./fewstep_words.js";

/** From the scores of Evaluate Digits: the Frechet distance of each model at each of its step counts. */
export function qualityContent(scores) {
  const steps = [...new Set(scores.map((score) => score.steps))].sort((one, other) => one - other);
  const line = (model, colour) => ({
    label: say(model), colour,
    values: steps.map((count) => scores.find((score) => score.model === model && score.steps === count)?.frechet ?? null),
  });
  return { x: steps, stages: steps.map(() => 0), names: {}, xLabel: "steps", log: true, points: true,
    lines: [line("teacher", "--teacher"), line("student", "--student")] };
}
