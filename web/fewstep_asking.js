// Buttons that ask something before they do anything: whether, or with which words.
import { make } from "./fewstep_elements.js";
import { say } from "./fewstep_words.js";

/** While one of these is open, its list is not drawn anew. */
export const OPEN = ".asking:not([hidden])";

/** A button, and in its place, once pressed, a question with what answers it. answers(close) makes these. */
function asking({ label, title, disabled }, answers) {
  const first = make("button", { type: "button", textContent: label, title, disabled, on: { click: () => toggle(true) } });
  const asked = make("form", { className: "row asking", hidden: true, on: { submit: (event) => event.preventDefault() } });
  const { shown, focused } = answers(() => toggle(false));
  const toggle = (open) => {
    asked.hidden = !open;
    first.hidden = open;
    (open ? focused : first).focus();
  };
  asked.append(...shown);
  asked.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // of the dialog that the list may stand in
    toggle(false);
  });
  return make("span", {}, first, asked);
}

const no = (close, textContent) => make("button", { type: "button", textContent, on: { click: close } });

/** action() runs after a second word only. */
export function confirming(button, question, yes, action) {
  return asking(button, (close) => {
    const stays = no(close, say("No"));
    const go = () => {
      close();
      action();
    };
    return { shown: [question, make("button", { type: "button", textContent: yes, on: { click: go } }), stays], focused: stays };
  });
}

/** action(text) runs with what was typed; value is what stands there before. */
export function writing(button, question, { value, tag = "input" }, action) {
  return asking(button, (close) => {
    const field = make(tag, { value, aria: { label: question } });
    const send = () => {
      close();
      action(field.value);
    };
    if (tag === "input") field.addEventListener("keydown", (event) => event.key === "Enter" && (event.preventDefault(), send()));
    return { shown: [field, make("button", { type: "button", textContent: say("Save"), on: { click: send } }), no(close, say("Leave"))], focused: field };
  });
}
