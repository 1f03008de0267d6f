// The chat page: a conversation kept here, asked of /v1/chat/completions, shown as it is written.

import { render } from "/page/markdown.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "repetition_penalty", "frequency_penalty"];
const NEAR_THE_END = 80; // pixels

let model = "";
let turns = []; // {role, content}
let running = null; // an AbortController while an answer is written

// ---- settings

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function request() {
  const system = $("system").value.trim();
  const stop = $("stop").value.split("\n").filter(Boolean);
  const body = {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
    ...(stop.length && { stop }),
  };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  return body;
}

function showSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", String(open));
  if (open) ($("key-row").hidden ? $("system") : $("key")).focus();
  else $("question").focus();
}

function showValues() {
  for (const output of document.querySelectorAll("output")) output.value = Number($(output.htmlFor.value).value).toFixed(2);
}

// ---- the state of the server

function tell(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

async function connect() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (response.status === 401) {
      $("key-row").hidden = false;
      tell($("key").value ? "this API key is not known" : "needs an API key", true);
      if ($("settings").hidden) showSettings(true);
      return;
    }
    if (!response.ok) throw new Error(await reason(response));
    model = (await response.json()).data[0].id;
    tell(model);
  } catch (error) {
    tell(error.message, true);
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers with status ${response.status}`;
  }
}

// ---- the conversation

function atTheEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END;
}

function toTheEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

function addTurn(role) {
  $("welcome").hidden = true;
  const turn = document.createElement("li");
  turn.className = role;
  const text = document.createElement("div");
  text.className = "text";
  turn.append(text);
  $("turns").append(turn);
  return { turn, text };
}

function addNote(turn, parts, content) {
  const note = document.createElement("div");
  note.className = "note";
  if (content) {
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "quiet";
    copy.textContent = "Copy";
    copy.dataset.copy = "turn";
    note.append(copy);
    turn.dataset.source = content;
  }
  for (const part of parts) {
    const span = document.createElement("span");
    span.textContent = part;
    note.append(span);
  }
  turn.append(note);
}

async function ask(question) {
  if (!model) await connect();
  if (!model) return false;
  turns.push({ role: "user", content: question });
  const mine = addTurn("user");
  mine.text.textContent = question;
  toTheEnd();
  await answer(mine.turn);
  return true;
}

async function answer(mine) {
  const { turn, text } = addTurn("assistant");
  text.classList.add("writing");
  toTheEnd();
  setRunning(new AbortController());
  let content = "", finish = null, usage = null, failure = "", pieces = 0, ended = 0, drawn = true;
  const began = performance.now();

  const draw = () => {
    drawn = true;
    const follow = atTheEnd();
    text.replaceChildren(render(content));
    if (follow) toTheEnd();
  };
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify(request()),
      signal: running.signal,
    });
    if (!response.ok) {
      if (response.status === 401) $("key-row").hidden = false;
      throw new Error(await reason(response));
    }
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      finish = choice?.finish_reason ?? finish;
      if (!choice?.delta?.content) continue;
      ended = performance.now();
      pieces += 1;
      content += choice.delta.content;
      if (drawn) {
        drawn = false;
        requestAnimationFrame(draw); // once a frame, however fast they come
      }
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else failure = error instanceof TypeError ? "the connection to the server is lost" : error.message;
  }
  text.classList.remove("writing");
  const follow = atTheEnd();
  draw();
  if (content) {
    turns.push({ role: "assistant", content });
    addNote(turn, notes(finish, usage, pieces, ended - began), content);
  } else {
    turns.pop(); // unanswered, it is no turn
    mine.remove();
    if (!$("question").value) $("question").value = mine.querySelector(".text").textContent;
    grow();
  }
  if (failure) {
    const box = document.createElement("p");
    box.className = "failed";
    box.setAttribute("role", "alert");
    box.textContent = failure;
    turn.append(box);
  } else if (!content) {
    turn.remove();
    $("welcome").hidden = turns.length > 0;
  }
  if (follow) toTheEnd();
  setRunning(null);
}

function notes(finish, usage, pieces, milliseconds) {
  const tokens = usage?.completion_tokens ?? pieces;
  const parts = [`${tokens} tokens`];
  if (usage) parts.push(`${usage.prompt_tokens} in the prompt`);
  const seconds = milliseconds / 1000; // from the question to the last token
  parts.push(`${seconds.toFixed(1)} s`, `${(tokens / seconds).toFixed(1)} tokens/s`);
  if (finish === "length") parts.push("cut off at its longest");
  if (finish === "stopped") parts.push("stopped");
  return parts;
}

/** The JSON of each server-sent event until [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the answer broke off");
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop-answer").hidden = !controller;
  $("turns").setAttribute("aria-busy", String(Boolean(controller)));
}

function restart() {
  running?.abort();
  turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("question").focus();
}

// ---- the box below

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

/** Take the last question back into the box, and forget it and its answer. */
function editLast() {
  if (running || turns.length < 2) return;
  turns.pop();
  $("question").value = turns.pop().content;
  for (const node of [...$("turns").children].reverse()) {
    node.remove();
    if (node.className === "user") break;
  }
  $("welcome").hidden = turns.length > 0;
  grow();
}

async function copy(button) {
  const source = button.dataset.copy === "code" ? button.closest(".block").querySelector("code").textContent : button.closest("li").dataset.source;
  try {
    await navigator.clipboard.writeText(source);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Cannot copy";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.isComposing) return; // an input method is choosing a character
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !$("question").value) { event.preventDefault(); editLast(); }
});
$("stop-answer").addEventListener("click", () => { running?.abort(); $("question").focus(); });
$("new").addEventListener("click", restart);
$("open-settings").addEventListener("click", () => showSettings($("settings").hidden));
$("close-settings").addEventListener("click", () => showSettings(false));
$("form-settings").addEventListener("submit", (event) => event.preventDefault());
$("form-settings").addEventListener("input", showValues);
$("form-settings").addEventListener("reset", () => setTimeout(showValues));
$("key").addEventListener("change", connect);
$("turns").addEventListener("click", (event) => { if (event.target.dataset?.copy) copy(event.target); });
document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") {
    if (running) running.abort();
    else if (!$("settings").hidden) showSettings(false);
  }
  if (control && event.key === ",") { event.preventDefault(); showSettings($("settings").hidden); }
  if (control && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); restart(); }
});

showValues();
connect();
