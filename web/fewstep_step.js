// What our elements do to the graph is a step of its own for who undoes it.
import { app } from "../../scripts/app.js";

/** Changes the graph: editors look what has changed at clicks and keys, before a button of ours has done anything. */
export function asStep(change) {
  app.canvas.emitBeforeChange?.();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange?.();
  }
}
