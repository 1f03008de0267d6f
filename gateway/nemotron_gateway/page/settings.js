// The settings: what they add to a request, and which of them this browser keeps.

import { $ } from "/page/screen.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty"];
const KEPT = [...NUMBERS, "stop"]; // never the API key; the system prompt belongs to a conversation
const STORED = "nemotron.settings";

/** Return the API key, which stays in the page. */
export function key() {
  return $("key").value.trim();
}

/** Return the keys that the settings add to a request; empty settings add none. */
export function sampling() {
  const stop = $("stop").value.split("\n").filter(Boolean);
  const numbers = NUMBERS.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]);
  return { ...Object.fromEntries(numbers), ...(stop.length && { stop }) };
}

/** Take the settings that are kept, and keep them from now on. Calls `changed` after each change. */
export function start(changed) {
  try {
    const kept = JSON.parse(localStorage.getItem(STORED)) ?? {};
    for (const name of KEPT) if (typeof kept[name] === "string") $(name).value = kept[name];
  } catch {
    // none are kept
  }
  showValues();
  const keep = () => {
    showValues();
    changed();
    try {
      localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(KEPT.map((name) => [name, $(name).value]))));
    } catch {
      // a browser that keeps nothing, which the list of chats says
    }
  };
  const form = $("form-settings");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", keep);
  form.addEventListener("reset", () => setTimeout(keep));
}

function showValues() {
  for (const output of document.querySelectorAll("output")) output.value = Number($(output.htmlFor.value).value).toFixed(2);
}
