// The list of chats: those that this browser keeps, and files of them.

import * as conversations from "/page/conversations.js";
import { $, WIDE, notice, showPanel } from "/page/screen.js";

/** The list. `current()` returns the conversation on the page, `show(conversation)` changes it. */
export class Chats {
  constructor(current, show) {
    this.current = current;
    this.show = show;
    $("list").addEventListener("click", (event) => this.#press(event.target.dataset));
    $("export").addEventListener("click", () => download([current()], "conversation.json"));
    $("export-all").addEventListener("click", () => download(this.kept(), "conversations.json"));
    $("import").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", async () => {
      if ($("file").files.length) await this.#take($("file").files[0]);
      $("file").value = "";
    });
    addEventListener("storage", (event) => { if (conversations.isKey(event.key)) this.draw(); }); // another tab
    showPanel("chats", WIDE.matches && this.kept().length > 0, false);
  }

  /** Return the kept conversations, the one that was changed last first. */
  kept() {
    try {
      return conversations.all();
    } catch {
      return []; // a browser that keeps nothing
    }
  }

  /** Keep a conversation, or say that this browser cannot. */
  keep(conversation) {
    try {
      conversations.save(conversation);
      notice("");
    } catch (error) {
      notice(`This browser keeps no conversations (${error.name}). Export what you need.`, true);
    }
    this.draw();
  }

  draw() {
    const kept = this.kept();
    $("list").replaceChildren(...kept.map((conversation) => listItem(conversation, conversation.id === this.current().id)));
    $("no-chats").hidden = kept.length > 0;
    $("export").disabled = !this.current().turns.length;
    $("export-all").disabled = !kept.length;
  }

  async #press({ open, remove }) {
    const conversation = this.kept().find((item) => item.id === (open ?? remove));
    if (!conversation) return;
    if (remove) await this.#remove(conversation);
    else if (open !== this.current().id) await this.show(conversation);
    if (open && !WIDE.matches) showPanel("chats", false);
  }

  async #remove(conversation) {
    if (!confirm(`Delete “${conversations.title(conversation)}”?`)) return;
    const isCurrent = conversation.id === this.current().id;
    const next = this.kept().find((item) => item.id !== conversation.id) ?? conversations.create();
    if (isCurrent) await this.show(next); // which ends an answer that is being written
    conversations.remove(conversation.id);
    this.draw();
    $("new").focus();
  }

  async #take(file) {
    let items;
    try {
      items = conversations.read(await file.text());
      for (const item of items) conversations.save(item);
    } catch (error) {
      notice(`${file.name} was not imported: ${error.message}`, true);
      return;
    }
    if (items.length) await this.show(items[0]);
    notice(`${items.length} imported.`);
  }
}

function listItem(conversation, isCurrent) {
  const name = conversations.title(conversation);
  const open = button(name, "quiet title");
  open.dataset.open = conversation.id;
  if (isCurrent) open.setAttribute("aria-current", "true");
  const remove = button("✕", "quiet");
  remove.setAttribute("aria-label", `Delete “${name}”`);
  remove.dataset.remove = conversation.id;
  const item = document.createElement("li");
  item.append(open, remove);
  return item;
}

function button(text, className) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = className;
  node.textContent = text;
  return node;
}

function download(items, name) {
  const url = URL.createObjectURL(new Blob([conversations.write(items)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
