// Markdown to DOM nodes. markdown-it makes HTML of it, in which HTML of the model is only text;
// highlight.js colours code; DOMPurify lets nothing through that could run or load anything.

import DOMPurify from "/page/vendor/dompurify.mjs";
import highlighter from "/page/vendor/highlight.mjs";
import MarkdownIt from "/page/vendor/markdown-it.mjs";

const LONGEST_COLOURED = 50_000; // characters: longer code would make the page stutter while it is written
const FIRST_HEADING = 3; // below the page's own headings
const PURE = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const markdown = new MarkdownIt({ html: false, linkify: true, highlight: colour });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.validateLink = (url) => /^(https?|mailto):/i.test(url);
markdown.renderer.rules.image = (tokens, index) => link(tokens[index].attrGet("src"), tokens[index].content || "picture");
markdown.core.ruler.push("page", (state) => {
  for (const token of state.tokens) {
    const heading = /^h([1-6])$/.exec(token.tag);
    if (heading) token.tag = `h${Math.min(6, Number(heading[1]) + FIRST_HEADING - 1)}`;
    const alignment = /^text-align:(\w+)$/.exec(token.attrGet("style") ?? "");
    if (alignment) token.attrs = [["class", `to-${alignment[1]}`]]; // the page allows no style attributes
  }
});

function colour(code, language) {
  if (!highlighter.getLanguage(language) || code.length > LONGEST_COLOURED) return "";
  return highlighter.highlight(code, { language, ignoreIllegals: true }).value;
}

function link(url, text) {
  const { escapeHtml } = markdown.utils;
  return `<a href="${escapeHtml(url)}">${escapeHtml(text)}</a>`; // pictures stay links
}

/** Return a fragment with the text's blocks. */
export function render(text) {
  const fragment = DOMPurify.sanitize(markdown.render(text), PURE);
  for (const anchor of fragment.querySelectorAll("a")) {
    anchor.target = "_blank";
    anchor.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) wrap(table, "scroll").tabIndex = 0;
  for (const pre of fragment.querySelectorAll("pre")) codeBlock(pre);
  return fragment;
}

function codeBlock(pre) {
  const language = /language-(\S+)/.exec(pre.firstChild?.className ?? "")?.[1];
  pre.tabIndex = 0; // so that the keyboard can scroll it
  const name = document.createElement("span");
  name.textContent = language ?? "code";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "quiet";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", "Copy the code");
  copy.dataset.action = "copy-code";
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.append(name, copy);
  wrap(pre, "block").prepend(bar);
}

function wrap(node, name) {
  const box = document.createElement("div");
  box.className = name;
  node.replaceWith(box);
  box.append(node);
  return box;
}
