// The chat page: conversations kept in this browser, asked of /v1/chat/completions, shown as they are written.

import { chat, model as askModel } from "/page/api.js";
import { Chats } from "/page/chats.js";
import { create } from "/page/conversations.js";
import { $, WIDE, announce, copy, showPanel, tell } from "/page/screen.js";
import * as settings from "/page/settings.js";
import { editTurn, showText, turnItem } from "/page/turns.js";

const NEAR_THE_END = 80; // pixels
const NEARLY_FULL = 0.9;

let model = null; // {id, max_model_len}
let current = create();
let running = null; // {controller, conversation, turn, ended: a promise} while an answer is written

// ---- the server

async function connect() {
  try {
    model = await askModel(settings.key());
    tell(model.id);
    showContext();
  } catch (error) {
    if (error.status === 401) askForKey();
    else tell(error instanceof TypeError ? "the server cannot be reached" : error.message, true);
  }
}

function askForKey() {
  $("key-row").hidden = false;
  tell(settings.key() ? "this API key is not known" : "needs an API key", true);
  if ($("settings").hidden) showPanel("settings", true);
}

function showContext() {
  const last = current.turns.findLast((turn) => turn.promptTokens !== undefined && turn.answerTokens !== undefined);
  const used = last ? last.promptTokens + last.answerTokens : 0;
  const limit = model?.max_model_len;
  $("context-row").hidden = !limit || !used;
  if (!limit) return;
  $("context").max = limit;
  $("context").high = limit * NEARLY_FULL;
  $("context").value = used;
  const nearlyFull = used > limit * NEARLY_FULL ? ": nearly full, start a new chat soon" : "";
  $("context-text").textContent = `${used.toLocaleString("en")} of ${limit.toLocaleString("en")} tokens${nearlyFull}`;
}

// ---- the conversation

function request(turns) {
  const system = $("system").value.trim();
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  return { model: model.id, messages, stream: true, stream_options: { include_usage: true }, ...settings.sampling() };
}

async function show(conversation) {
  await stop();
  current = conversation;
  $("system").value = current.system;
  draw();
  toTheEnd();
  chats.draw();
  showContext();
}

async function restart() {
  await show(create($("system").value));
  $("question").focus();
}

function atTheEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END;
}

function toTheEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

function draw() {
  const { turns } = current;
  $("turns").replaceChildren(...turns.map((turn, index) => turnItem(turn, index, index === turns.length - 1)));
  $("welcome").hidden = turns.length > 0;
}

async function ask(question) {
  if (!model) await connect();
  if (!model) return false;
  current.turns.push({ role: "user", content: question });
  chats.keep(current);
  const failure = await answer();
  if (failure && current.turns.at(-1)?.role === "user") {
    current.turns.pop(); // unanswered, it goes back into the box
    chats.keep(current);
    draw();
    fail(failure);
    return false;
  }
  return true;
}

/** Replace the last answer, or answer the last question. Without any text, an old answer stays. */
async function regenerate() {
  if (running || !current.turns.length) return;
  if (!model) await connect();
  if (!model) return;
  const conversation = current;
  const { turns } = conversation;
  const old = turns.at(-1).role === "assistant" ? turns.pop() : null;
  const before = turns.length;
  const failure = await answer();
  const made = turns[before];
  if (old && !made?.content && (failure || made.finish === "stopped")) {
    turns.splice(before, Infinity, old);
    chats.keep(conversation);
    draw();
  }
  if (failure) fail(failure);
  $("question").focus();
}

/** Write the answer to the last turn, and return why it failed, or "". */
async function answer() {
  const conversation = current;
  const turn = { role: "assistant", content: "" };
  draw();
  const item = turnItem(turn, conversation.turns.length, false);
  item.querySelector(".note").remove();
  const text = item.querySelector(".text");
  text.classList.add("writing");
  $("turns").append(item);
  toTheEnd();
  let finish;
  running = { controller: new AbortController(), conversation, turn, ended: new Promise((resolve) => { finish = resolve; }) };
  showRunning();
  announce("The model is writing.");
  const failure = await write(conversation, turn, text);
  text.classList.remove("writing");
  const follow = atTheEnd();
  if (turn.content || !failure) conversation.turns.push(turn);
  running = null;
  showRunning();
  showText(text, turn);
  chats.keep(conversation);
  draw();
  showContext();
  if (turn.content && failure) fail(failure);
  if (follow) toTheEnd();
  announce(failure ? "" : turn.content || text.textContent);
  finish();
  return failure;
}

async function write(conversation, turn, text) {
  const began = performance.now();
  let usage = null, pieces = 0, ended = 0, drawn = true, failure = "";
  const redraw = () => {
    drawn = true;
    const follow = atTheEnd();
    showText(text, turn);
    if (follow) toTheEnd();
  };
  try {
    for await (const event of chat(request(conversation.turns), settings.key(), running.controller.signal)) {
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      turn.finish = choice?.finish_reason ?? turn.finish;
      if (!choice?.delta?.content) continue;
      ended = performance.now();
      pieces += 1;
      turn.content += choice.delta.content;
      if (drawn) {
        drawn = false;
        requestAnimationFrame(redraw); // once a frame, however fast they come
      }
    }
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else {
      turn.finish = "failed";
      failure = error instanceof TypeError ? "the connection to the server is lost" : error.message;
      if (error.status === 401) askForKey();
    }
  }
  if (turn.content) {
    turn.seconds = (ended - began) / 1000; // from the question to the last token
    turn.answerTokens = usage?.completion_tokens ?? pieces;
  }
  if (usage) turn.promptTokens = usage.prompt_tokens;
  return failure;
}

function fail(message) {
  const box = document.createElement("p");
  box.className = "failed";
  box.setAttribute("role", "alert");
  box.textContent = message;
  const item = document.createElement("li");
  item.append(box);
  $("turns").append(item);
  $("welcome").hidden = true;
  toTheEnd();
}

function showRunning() {
  const writes = Boolean(running);
  $("send").hidden = writes;
  $("stop-answer").hidden = !writes;
  $("turns").setAttribute("aria-busy", String(writes));
}

async function stop() {
  const { controller, ended } = running ?? {};
  controller?.abort();
  await ended;
}

// ---- the box below, and the buttons at the turns

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

async function send() {
  const box = $("question");
  const question = box.value.trim();
  if (!question || running) return;
  box.value = "";
  grow();
  if (!(await ask(question)) && !box.value) {
    box.value = question;
    grow();
  }
}

function edit(index) {
  if (running || current.turns[index]?.role !== "user") return;
  const conversation = current;
  const item = $("turns").querySelector(`[data-index="${index}"]`);
  editTurn(item, conversation.turns[index].content, async (content) => {
    if (content === null || running || conversation !== current) {
      draw();
      $("question").focus();
      return;
    }
    const before = conversation.turns.splice(index);
    conversation.turns.push({ role: "user", content });
    $("question").focus();
    const failure = await answer();
    if (!failure || conversation.turns.at(-1).role === "assistant") return;
    conversation.turns.splice(index, Infinity, ...before);
    chats.keep(conversation);
    draw();
    fail(failure);
  });
}

const ACTIONS = {
  copy: (button) => copy(button, current.turns[button.closest("li").dataset.index].content),
  "copy-code": (button) => copy(button, button.closest(".block").querySelector("code").textContent),
  edit: (button) => edit(Number(button.closest("li").dataset.index)),
  regenerate,
};

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.isComposing) return; // an input method is choosing a character
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !$("question").value) {
    event.preventDefault();
    edit(current.turns.findLastIndex((turn) => turn.role === "user"));
  }
});
$("stop-answer").addEventListener("click", () => { stop(); $("question").focus(); });
$("new").addEventListener("click", restart);
$("key").addEventListener("change", connect);
$("turns").addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-action]");
  if (button) ACTIONS[button.dataset.action]?.(button);
});
document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") {
    if (running) stop();
    else if (!$("settings").hidden) showPanel("settings", false);
    else if (!$("chats").hidden && !WIDE.matches) showPanel("chats", false);
  }
  if (control && event.key === ",") { event.preventDefault(); showPanel("settings", $("settings").hidden); }
  if (control && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); restart(); }
});
addEventListener("pagehide", () => {
  if (!running?.turn.content) return;
  const { conversation, turn } = running;
  chats.keep({ ...conversation, turns: [...conversation.turns, { ...turn, finish: "stopped" }] });
});

const chats = new Chats(() => current, show);
settings.start(() => {
  current.system = $("system").value;
  chats.keep(current);
});
await show(chats.kept()[0] ?? create());
connect();
