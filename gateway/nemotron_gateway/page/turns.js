// A turn of a conversation on the page: its text, what there is to know about it, its buttons.

import { render } from "/page/markdown.js";

const NAMES = { user: "You", assistant: "Nemotron" };
/** What to say about an answer without text, by its finish reason. */
const EMPTY = {
  stop: "The model ended its answer at once, without any text (finish reason: stop).",
  length: "There is no text: the allowed tokens were used up before any (finish reason: length).",
  stopped: "You stopped the answer before its first word.",
};
const ENDINGS = { length: "cut off at its longest", stopped: "stopped", failed: "broke off" };

/** Return a list item for a turn. `isLast` adds what only the last turn can do. */
export function turnItem(turn, index, isLast) {
  const item = document.createElement("li");
  item.className = turn.role;
  item.dataset.index = index;
  const name = element("h2", NAMES[turn.role], "hidden"); // screen readers go from heading to heading
  const text = element("div", "", "text");
  item.append(name, text);
  if (turn.role === "user") text.textContent = turn.content;
  else showText(text, turn);
  return addNote(item, turn, isLast);
}

/** Show the text of an answer, or why there is none. */
export function showText(text, turn) {
  text.replaceChildren(turn.content ? render(turn.content) : element("p", emptiness(turn.finish), "empty"));
}

function emptiness(finish) {
  if (!finish) return "";
  return EMPTY[finish] ?? `There is no text (finish reason: ${finish}).`;
}

/** Add the line below a turn, with its facts and its buttons. */
function addNote(item, turn, isLast) {
  const note = element("div", "", "note");
  if (turn.content) note.append(button("Copy", "copy", "this turn"));
  if (turn.role === "user") note.append(button("Edit", "edit", "this message"));
  if (isLast) note.append(turn.role === "user" ? button("Answer", "regenerate") : button("Regenerate", "regenerate", "this answer"));
  note.append(...facts(turn).map((fact) => element("span", fact)));
  item.append(note);
  return item;
}

function facts(turn) {
  if (turn.role === "user" || turn.answerTokens === undefined) return turn.finish && ENDINGS[turn.finish] ? [ENDINGS[turn.finish]] : [];
  const found = [`${turn.answerTokens} tokens`];
  if (turn.promptTokens !== undefined) found.push(`${turn.promptTokens} in the prompt`);
  if (turn.seconds > 0) found.push(`${turn.seconds.toFixed(1)} s`, `${(turn.answerTokens / turn.seconds).toFixed(1)} tokens/s`);
  if (ENDINGS[turn.finish]) found.push(ENDINGS[turn.finish]);
  return found;
}

/** Put an editor in the place of a turn's text. Calls `done` with the new text, or with null. */
export function editTurn(item, content, done) {
  const form = element("form", "", "editor");
  const label = element("label", "Your message. All turns after it will be replaced.");
  const box = document.createElement("textarea");
  box.value = content;
  box.rows = Math.min(12, content.split("\n").length + 1);
  label.append(box);
  const send = element("button", "Send");
  send.type = "submit";
  const cancel = button("Cancel", "cancel-edit");
  form.append(label, send, cancel);
  const leave = (text) => {
    form.remove();
    done(text);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) leave(box.value.trim());
  });
  cancel.addEventListener("click", () => leave(null));
  box.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
    if (event.key === "Escape") {
      event.stopPropagation();
      leave(null);
    }
  });
  item.querySelector(".text").hidden = true;
  item.querySelector(".note").hidden = true;
  item.append(form);
  box.focus();
  form.scrollIntoView({ block: "nearest" });
}

function button(text, action, what = "") {
  const node = element("button", text, "quiet");
  node.type = "button";
  node.dataset.action = action;
  if (what) node.setAttribute("aria-label", `${text} ${what}`);
  return node;
}

function element(name, text = "", className = "") {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}
