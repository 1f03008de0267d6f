// Markdown to DOM nodes: headings, lists, quotes, tables, code, links, emphasis. Text only ever
// becomes text nodes, so nothing that a model writes is run or loaded; pictures stay links.

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 8;

/** A fragment with the text's blocks. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  blocks(text.split("\n"), fragment, 0);
  return fragment;
}

function blocks(lines, parent, depth) {
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      const end = lines.findIndex((l, j) => j > i && l.trim().startsWith(fence[1]) && !l.trim().slice(fence[1].length).trim());
      const last = end < 0 ? lines.length : end; // still being written
      parent.append(codeBlock(lines.slice(i + 1, last).join("\n"), fence[2]));
      i = last + 1;
    } else if (!line.trim()) {
      i += 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      parent.append(element(`h${Math.min(6, marks.length + 2)}`, inline(title)));
      i += 1;
    } else if (RULE.test(line)) {
      parent.append(element("hr"));
      i += 1;
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const inner = [];
      for (; i < lines.length && QUOTE.test(lines[i]); i += 1) inner.push(QUOTE.exec(lines[i])[1]);
      const quote = element("blockquote");
      blocks(inner, quote, depth + 1);
      parent.append(quote);
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      i = list(lines, i, parent, depth);
    } else if (line.includes("|") && TABLE_RULE.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      i = table(lines, i, parent);
    } else {
      const inner = [];
      for (; i < lines.length && lines[i].trim() && (!inner.length || !startsBlock(lines[i])); i += 1) inner.push(lines[i]);
      parent.append(element("p", inline(inner.join("\n"))));
    }
  }
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function list(lines, start, parent, depth) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark, 10) !== 1) node.start = parseInt(mark, 10);
  let i = start;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    const content = lines[i].length - item[3].length;
    for (i += 1; i < lines.length; i += 1) {
      const line = lines[i];
      const deep = line.length - line.trimStart().length;
      if (!line.trim()) {
        const next = lines.slice(i + 1).find((l) => l.trim());
        if (next === undefined || next.length - next.trimStart().length <= indent.length) break;
        inner.push("");
      } else if (deep > indent.length) {
        inner.push(line.slice(Math.min(deep, content)));
      } else if (startsBlock(line)) {
        break;
      } else {
        inner.push(line);
      }
    }
    const li = element("li");
    blocks(inner, li, depth + 1);
    // One line is no paragraph.
    if (li.firstChild?.tagName === "P" && (li.childNodes.length === 1 || li.childNodes[1].tagName !== "P")) li.firstChild.replaceWith(...li.firstChild.childNodes);
    node.append(li);
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines.slice(i).find((l) => l.trim()) ?? "")) i += 1;
  }
  parent.append(node);
  return i;
}

function table(lines, start, parent) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((c) => c.trim());
  const head = cells(lines[start]);
  const body = element("tbody");
  let i = start + 2;
  for (; i < lines.length && lines[i].includes("|"); i += 1) {
    const row = cells(lines[i]);
    body.append(element("tr", ...head.map((_, n) => element("td", inline(row[n] ?? "")))));
  }
  const top = element("thead", element("tr", ...head.map((c) => element("th", inline(c)))));
  const scroll = element("div", element("table", top, body));
  scroll.className = "scroll";
  parent.append(scroll);
  return i;
}

// In the order in which they win where two could begin.
const INLINE = [
  [/`{1,3}([^`]|[^`][^]*?[^`])`{1,3}/, (m) => element("code", m[1])],
  [/!?\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()]+(?:\([^\s()]*\))?[^\s()]*)\)/, (m) => link(m[1], m[2])],
  [/https?:\/\/[^\s<>"')\]]+[^\s<>"')\].,;:!?]/, (m) => link(m[0], m[0])],
  [/\*\*(?=\S)([^]*?\S)\*\*/, (m, d) => element("strong", inline(m[1], d))],
  [/(?<![\w_])__(?=\S)([^]*?\S)__(?![\w_])/, (m, d) => element("strong", inline(m[1], d))],
  [/\*(?=[^\s*])([^*]*?[^\s*])\*(?!\*)/, (m, d) => element("em", inline(m[1], d))],
  [/(?<![\w_])_(?=[^\s_])([^_]*?[^\s_])_(?![\w_])/, (m, d) => element("em", inline(m[1], d))],
  [/~~(?=\S)([^]*?\S)~~/, (m, d) => element("del", inline(m[1], d))],
];

function inline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  let rest = text;
  while (rest) {
    let first = null;
    for (const [pattern, make] of depth < MAX_DEPTH ? INLINE : []) {
      const match = pattern.exec(rest);
      if (match && (!first || match.index < first.match.index)) first = { match, make };
    }
    if (!first) break;
    fragment.append(rest.slice(0, first.match.index), first.make(first.match, depth + 1));
    rest = rest.slice(first.match.index + first.match[0].length);
  }
  fragment.append(rest);
  return fragment;
}

function link(text, href) {
  const a = element("a", text);
  a.href = href; // only http and https come here
  a.target = "_blank";
  a.rel = "noopener noreferrer";
  return a;
}

const TOKEN = /("""[^]*?"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|(\/\/[^\n]*|\/\*[^]*?\*\/|(?<![\w&$])#(?![0-9a-fA-F]{3,8}\b)[^\n]*)|\b(0x[\da-fA-F]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\b|\b(abstract|and|as|assert|async|await|break|case|catch|class|const|continue|def|default|del|do|done|elif|else|end|enum|esac|except|export|extends|False|false|fi|finally|fn|for|from|func|function|global|if|impl|import|in|interface|is|lambda|let|match|mut|namespace|new|None|nil|not|null|or|package|pass|private|protected|pub|public|raise|return|select|self|static|struct|super|switch|then|this|throw|trait|True|true|try|type|typeof|use|using|var|void|where|while|with|yield)\b/g;
const PLAIN = new Set(["text", "txt", "plain", "console", "markdown", "md"]);

function codeBlock(code, language) {
  const node = element("code");
  if (PLAIN.has(language)) node.append(code);
  else highlight(code, node);
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.className = "quiet";
  copy.dataset.copy = "code";
  const bar = element("div", element("span", language || "code"), copy);
  bar.className = "bar";
  const block = element("div", bar, element("pre", node));
  block.className = "block";
  return block;
}

function highlight(code, parent) {
  let at = 0;
  for (const match of code.matchAll(TOKEN)) {
    const kind = match[1] ? "text" : match[2] ? "note" : match[3] ? "number" : "key";
    const span = element("span", match[0]);
    span.className = `t-${kind}`;
    parent.append(code.slice(at, match.index), span);
    at = match.index + match[0].length;
  }
  parent.append(code.slice(at));
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
