// Parts of the page that every other part uses: elements, panels, messages, the clipboard.

export const $ = (id) => document.getElementById(id);
export const WIDE = matchMedia("(min-width: 64rem)");

/** Open or close the panel `name`, and move the focus into it or back to the question. */
export function showPanel(name, open, focus = true) {
  $(name).hidden = !open;
  $(`open-${name}`).setAttribute("aria-expanded", String(open));
  if (!focus) return;
  if (!open) $("question").focus();
  else if (name === "chats") $("new").focus();
  else ($("key-row").hidden ? $("system") : $("key")).focus();
}

/** Show the state of the server in the header. */
export function tell(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

/** Show what became of the conversations, above the question. */
export function notice(text, bad = false) {
  $("storage").textContent = text;
  $("storage").classList.toggle("bad", bad);
}

/** Say something to screen readers only. */
export function announce(text) {
  $("announcement").textContent = text;
}

/** Copy a text, and say on the button whether that worked. */
export async function copy(button, text) {
  const name = button.textContent;
  button.textContent = (await toClipboard(text)) ? "Copied" : "Cannot copy";
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

for (const name of ["settings", "chats"]) {
  $(`open-${name}`).addEventListener("click", () => showPanel(name, $(name).hidden));
  $(`close-${name}`).addEventListener("click", () => showPanel(name, false));
}
