// The conversations that this browser keeps, each under a key of its own, so that two tabs can keep
// different ones; and their form as a file.
//
// A conversation is {id, created, updated, system, turns}, a turn {role, content} and, if it is the
// model's, {finish, promptTokens, answerTokens, seconds}.

const PREFIX = "nemotron.conversation.";
const FORMAT = "nemotron-conversations";
const TITLE_LENGTH = 60;
const ROLES = ["user", "assistant"];

export function create(system = "") {
  const now = new Date().toISOString();
  return { id: newId(), created: now, updated: now, system, turns: [] };
}

/** randomUUID is only there over TLS and on this machine. */
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function title(conversation) {
  const text = conversation.turns.find((turn) => turn.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  if (!text) return "New chat";
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH - 1)}…` : text;
}

/** Return all kept conversations, the one that was changed last first. What cannot be read is left alone. */
export function all() {
  const found = [];
  for (let index = 0; index < localStorage.length; index += 1) {
    const key = localStorage.key(index);
    if (!key.startsWith(PREFIX)) continue;
    try {
      found.push({ ...conversation(JSON.parse(localStorage.getItem(key))), id: key.slice(PREFIX.length) });
    } catch {
      // a conversation of another version of this page
    }
  }
  return found.sort((a, b) => (a.updated < b.updated ? 1 : -1));
}

/** Keep a conversation that has turns. Throws if the browser has no room or keeps nothing. */
export function save(conversation) {
  conversation.updated = new Date().toISOString();
  if (conversation.turns.length) localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  else remove(conversation.id);
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export function isKey(key) {
  return key === null || key.startsWith(PREFIX); // null: everything was deleted
}

/** Return the text of a file with these conversations. */
export function write(conversations) {
  const content = conversations.map(({ id: _id, ...rest }) => ({ title: title(rest), ...rest }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: content }, null, 2);
}

/** Return the conversations of a file, with new ids. Throws an Error that says what is wrong, and where.
 *
 * A file is what `write` made, or a list of messages, or an object with one, as OpenAI's API has it. */
export function read(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new Error(`this is no JSON: ${error.message}`);
  }
  if (Array.isArray(content)) content = { messages: content };
  const items = content?.conversations ?? (content?.messages ? [content] : null);
  if (!Array.isArray(items)) throw new Error("there are neither conversations nor messages in it");
  return items.map((item, index) => {
    try {
      return { ...conversation(item), id: newId() };
    } catch (error) {
      throw new Error(`conversation ${index + 1}: ${error.message}`);
    }
  });
}

/** Return a conversation of which every part has been checked. */
function conversation(item) {
  const turns = item?.turns ?? item?.messages;
  if (!Array.isArray(turns)) throw new Error("it has no turns");
  const isSystem = (turn) => turn?.role === "system" || turn?.role === "developer";
  const systems = turns.filter(isSystem).map((turn, index) => message(turn, index).content);
  const now = new Date().toISOString();
  return {
    created: date(item.created) ?? now,
    updated: date(item.updated) ?? now,
    system: typeof item.system === "string" ? item.system : systems.join("\n\n"),
    turns: turns.map((turn, index) => [turn, index]).filter(([turn]) => !isSystem(turn)).map(([turn, index]) => message(turn, index)),
  };
}

function message(turn, index) {
  const { role, content } = turn ?? {};
  if (![...ROLES, "system", "developer"].includes(role)) throw new Error(`message ${index + 1} has the role ${JSON.stringify(role)}`);
  if (typeof content !== "string") throw new Error(`message ${index + 1} has no text`);
  const number = (value) => (Number.isFinite(value) ? value : undefined);
  return {
    role,
    content,
    finish: typeof turn.finish === "string" ? turn.finish : undefined,
    promptTokens: number(turn.promptTokens),
    answerTokens: number(turn.answerTokens),
    seconds: number(turn.seconds),
  };
}

function date(value) {
  return Number.isNaN(Date.parse(value)) ? undefined : new Date(value).toISOString();
}
