// The chat page: conversations kept in this browser, asked of /v1/chat/completions, shown as they are written.

import { chat, model as askModel } from "/page/api.js";
import * as conversations from "/page/conversations.js";
import { addNote, editTurn, showText, turnItem } from "/page/turns.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty"];
const KEPT = [...NUMBERS, "stop"]; // the settings that this browser keeps: never the API key
const SETTINGS = "nemotron.settings";
const NEAR_THE_END = 80; // pixels
const NEARLY_FULL = 0.9;
const WIDE = matchMedia("(min-width: 64rem)");

let model = null; // {id, max_model_len}
let current = conversations.create();
let running = null; // {controller, ended: a promise} while an answer is written

// ---- settings

function request(turns) {
  const system = $("system").value.trim();
  const stop = $("stop").value.split("\n").filter(Boolean);
  const messages = turns.map(({ role, content }) => ({ role, content }));
  const body = {
    model: model.id,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
    ...(stop.length && { stop }),
  };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  return body;
}

function showPanel(name, open, focus = true) {
  $(name).hidden = !open;
  $(`open-${name}`).setAttribute("aria-expanded", String(open));
  if (!focus) return;
  if (!open) $("question").focus();
  else if (name === "chats") $("new").focus();
  else ($("key-row").hidden ? $("system") : $("key")).focus();
}

function showValues() {
  for (const output of document.querySelectorAll("output")) output.value = Number($(output.htmlFor.value).value).toFixed(2);
}

function keepSettings() {
  showValues();
  current.system = $("system").value;
  keep(current);
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(Object.fromEntries(KEPT.map((name) => [name, $(name).value]))));
  } catch {
    // `keep` has said that this browser keeps nothing
  }
}

function takeSettings() {
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    for (const name of KEPT) if (typeof kept[name] === "string") $(name).value = kept[name];
  } catch {
    // none are kept
  }
  showValues();
}

// ---- the state of the server and of this page

function tell(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

function announce(text) {
  $("announcement").textContent = text; // only screen readers have it
}

async function connect() {
  try {
    model = await askModel($("key").value.trim());
    tell(model.id);
    showContext();
  } catch (error) {
    if (error.status === 401) askForKey();
    else tell(error instanceof TypeError ? "the server cannot be reached" : error.message, true);
  }
}

function askForKey() {
  $("key-row").hidden = false;
  tell($("key").value ? "this API key is not known" : "needs an API key", true);
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

// ---- the conversations that are kept

function notice(text, bad = false) {
  $("storage").textContent = text;
  $("storage").classList.toggle("bad", bad);
}

function keep(conversation) {
  try {
    conversations.save(conversation);
    notice("");
  } catch (error) {
    notice(`This browser keeps no conversations (${error.name}). Export what you need.`, true);
  }
  showList();
}

function kept() {
  try {
    return conversations.all();
  } catch {
    return []; // a browser that keeps nothing
  }
}

function showList() {
  const items = kept().map((conversation) => {
    const item = document.createElement("li");
    const name = conversations.title(conversation);
    const open = document.createElement("button");
    open.type = "button";
    open.className = "quiet title";
    open.textContent = name;
    open.dataset.open = conversation.id;
    if (conversation.id === current.id) open.setAttribute("aria-current", "true");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "quiet";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Delete “${name}”`);
    remove.dataset.remove = conversation.id;
    item.append(open, remove);
    return item;
  });
  $("list").replaceChildren(...items);
  $("no-chats").hidden = items.length > 0;
  $("export").disabled = !current.turns.length;
  $("export-all").disabled = !items.length;
}

async function show(conversation) {
  await stop();
  current = conversation;
  $("system").value = current.system;
  draw();
  toTheEnd();
  showList();
  showContext();
}

async function restart() {
  await show(conversations.create($("system").value));
  $("question").focus();
}

async function remove(id) {
  const conversation = id === current.id ? current : kept().find((item) => item.id === id);
  if (!conversation || !confirm(`Delete “${conversations.title(conversation)}”?`)) return;
  if (id === current.id) await stop();
  conversations.remove(id);
  if (id === current.id) await show(kept()[0] ?? conversations.create());
  showList();
  $("new").focus();
}

function download(items, name) {
  const url = URL.createObjectURL(new Blob([conversations.write(items)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function take(file) {
  let items;
  try {
    items = conversations.read(await file.text());
    for (const item of items) conversations.save(item);
  } catch (error) {
    notice(`${file.name} was not imported: ${error.message}`, true);
    return;
  }
  notice(`${items.length} imported.`);
  if (items.length) await show(items[0]);
}

// ---- the conversation

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
  keep(current);
  const failure = await answer();
  if (failure && current.turns.at(-1)?.role === "user") {
    current.turns.pop(); // unanswered, it goes back into the box
    keep(current);
    draw();
    fail(failure);
    return false;
  }
  return true;
}

/** Replace the last answer, or answer the last question. If there is no text, an old answer stays. */
async function regenerate() {
  if (running || !current.turns.length) return;
  if (!model) await connect();
  if (!model) return;
  const conversation = current;
  const old = current.turns.at(-1).role === "assistant" ? current.turns.pop() : null;
  const failure = await answer();
  if (failure && old && conversation.turns.at(-1).role === "user") {
    conversation.turns.push(old);
    keep(conversation);
    draw();
    fail(failure);
  } else if (failure) fail(failure);
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
  keep(conversation);
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
    for await (const event of chat(request(conversation.turns), $("key").value.trim(), running.controller.signal)) {
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
    keep(conversation);
    draw();
    fail(failure);
  });
}

async function copy(button, source) {
  const name = button.textContent;
  button.textContent = (await toClipboard(source)) ? "Copied" : "Cannot copy";
  announce(button.textContent);
  setTimeout(() => { button.textContent = name; }, 1500);
}

/** Browsers offer the clipboard over TLS and on this machine; the old way works elsewhere too. */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
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
for (const name of ["settings", "chats"]) {
  $(`open-${name}`).addEventListener("click", () => showPanel(name, $(name).hidden));
  $(`close-${name}`).addEventListener("click", () => showPanel(name, false));
}
$("form-settings").addEventListener("submit", (event) => event.preventDefault());
$("form-settings").addEventListener("input", keepSettings);
$("form-settings").addEventListener("reset", () => setTimeout(keepSettings));
$("key").addEventListener("change", connect);
$("turns").addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-action]");
  if (button) ACTIONS[button.dataset.action]?.(button);
});
$("list").addEventListener("click", async (event) => {
  const { open, remove: removed } = event.target.dataset;
  if (removed) await remove(removed);
  if (!open || open === current.id) return;
  const conversation = kept().find((item) => item.id === open);
  if (conversation) await show(conversation);
  if (!WIDE.matches) showPanel("chats", false);
});
$("export").addEventListener("click", () => download([current], "conversation.json"));
$("export-all").addEventListener("click", () => download(kept(), "conversations.json"));
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  if ($("file").files.length) await take($("file").files[0]);
  $("file").value = "";
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
addEventListener("storage", (event) => { if (conversations.isKey(event.key)) showList(); }); // another tab
addEventListener("pagehide", () => {
  if (!running?.turn.content) return;
  const { conversation, turn } = running;
  keep({ ...conversation, turns: [...conversation.turns, { ...turn, finish: "stopped" }] });
});

takeSettings();
showPanel("chats", WIDE.matches && kept().length > 0, false);
await show(kept()[0] ?? conversations.create());
connect();
