// The item explorer: search and filter what analysis/explorer.py packed, list it page by page, show one item with
// every model's answer. Text from the records only ever becomes textContent.
"use strict";
(() => {
  const root = document.getElementById("explorer");
  if (!root) return;
  const $ = (name) => root.querySelector(`[data-part="${name}"]`);
  const PAGE = 25;
  const VERDICT = { candidate: "win", baseline: "loss", tie: "tie", none: "no verdict" };
  const DETAILS = [["extracted", "Taken"], ["gold", "wanted"], ["detail", "Grader"], ["output", "Output"],
    ["finish", "ended by"], ["mode", "run"], ["other", "other mode"], ["error", "Error"]];
  let data, items, found = [], page = 0, open = -1, typing = 0;

  const at = (column, row) => (Array.isArray(column) ? column[row] : column);
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = plain(text);
    if (kind) element.className = kind;
    return element;
  };
  // What cannot be seen, or would turn the writing around, is spelled out.
  const plain = (text) =>
    String(text)
      .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g, (c) => (c === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0))))
      .replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u${c.charCodeAt(0).toString(16)}`);
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

  async function unpack() {
    const packed = document.getElementById("explorer-data").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }

  function index() {
    const sums = { answers: 0, verdicts: 0 };
    return data.items.id.map((id, i) => {
      const item = { i, id, task: data.tasks[data.items.task[i]], prompt: data.items.prompt[i], text: null };
      for (const kind of ["answers", "verdicts"]) {
        item[kind] = [sums[kind], (sums[kind] += data[kind].count[i])];
      }
      return item;
    });
  }

  // Mean success of some models on an item: answers that were graded, else verdicts, a tie as a half; null is unknown.
  function score(item, wanted) {
    let sum = 0, n = 0;
    for (let r = item.answers[0]; r < item.answers[1]; r++) {
      const right = data.answers.right[r];
      if (right >= 0 && (!wanted || wanted.has(data.answers.model[r]))) { sum += right; n++; }
    }
    if (n) return sum / n;
    for (let r = item.verdicts[0]; r < item.verdicts[1]; r++) {
      const word = data.words[data.verdicts.word[r]];
      if (word === "none" || (wanted && !wanted.has(data.verdicts.model[r]))) continue;
      sum += word === "candidate" ? 1 : word === "tie" ? 0.5 : 0; n++;
    }
    return n ? sum / n : null;
  }

  function has(item, wanted, word) {
    for (const kind of ["answers", "verdicts"]) {
      for (let r = item[kind][0]; r < item[kind][1]; r++) {
        if ((!wanted || wanted.has(data[kind].model[r])) && data.words[data[kind].word[r]] === word) return true;
      }
    }
    return false;
  }

  function searched(item) {
    if (item.text === null) {
      const parts = [item.task, item.id, item.prompt];
      for (let r = item.answers[0]; r < item.answers[1]; r++) parts.push(data.answers.text[r]);
      for (let r = item.verdicts[0]; r < item.verdicts[1]; r++) parts.push(data.verdicts.text[r]);
      item.text = parts.join("\n").toLowerCase();
    }
    return item.text;
  }

  // A model, or all seeds of a method; null is every model.
  function members(choice) {
    if (choice === "") return null;
    const [kind, name] = [choice.slice(0, 1), choice.slice(1)];
    const some = data.models.flatMap(([label, method], m) => ((kind === "s" ? method : label) === name ? [m] : []));
    return new Set(some);
  }

  const FATES = {
    all: () => true,
    right: (s) => s === 1,
    wrong: (s) => s === 0,
    mixed: (s) => s !== null && s > 0 && s < 1,
    unknown: (s) => s === null,
  };

  function filter() {
    clearTimeout(typing); // asked for already: nothing may change the list a second time
    const asked = $("search").value.toLowerCase().match(/"[^"]+"|\S+/g) || []; // words, or "a phrase"
    const words = asked.map((word) => word.replace(/^"(.+)"$/, "$1"));
    const [task, fate] = [$("task").value, $("fate").value];
    const [one, two] = [members($("model").value), members($("other").value)];
    const compared = $("other").value !== "";
    found = items.filter((item) => {
      if (task !== "" && item.task !== task) return false;
      if (fate.startsWith("=")) {
        if (!has(item, one, fate.slice(1))) return false;
      } else if (fate !== "all" && !FATES[fate](score(item, one))) return false;
      if (compared) {
        const [a, b] = [score(item, one), score(item, two)];
        if (a === null || b === null || a === b) return false;
      }
      return words.length === 0 || words.every((word) => searched(item).includes(word));
    });
    page = 0;
    list();
  }

  function tally(item) {
    const counts = { right: 0, graded: 0, win: 0, tie: 0, loss: 0, "no verdict": 0 };
    for (let r = item.answers[0]; r < item.answers[1]; r++) {
      if (data.answers.right[r] >= 0) { counts.graded++; counts.right += data.answers.right[r]; }
    }
    for (let r = item.verdicts[0]; r < item.verdicts[1]; r++) counts[VERDICT[data.words[data.verdicts.word[r]]]]++;
    const said = counts.graded ? [`${counts.right} of ${counts.graded} right`] : [];
    if (item.verdicts[1] > item.verdicts[0]) said.push(`${counts.win} won, ${counts.tie} tied, ${counts.loss} lost`);
    return said.join("; ") || count(item.answers[1] - item.answers[0], "answer");
  }

  function list() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    $("status").textContent = `${found.length.toLocaleString("en")} of ${count(items.length, "item")}; page ${page + 1} of ${pages}`;
    const pressed = document.activeElement;
    $("back").disabled = page === 0;
    $("on").disabled = page === pages - 1;
    if (pressed.disabled) (page > 0 ? $("back") : pages > 1 ? $("on") : $("search")).focus(); // at an end: the way back
    const focused = document.activeElement.dataset.item; // the list may change under a reader who is in it
    $("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((item) => {
      const line = make("li");
      const button = make("button");
      button.type = "button";
      button.dataset.item = item.i;
      if (item.i === open) button.setAttribute("aria-current", "true");
      const start = item.prompt.length > 160 ? `${item.prompt.slice(0, 160)}…` : item.prompt;
      button.append(make("span", item.task, "task"), " ", make("bdi", start || item.id, "start"), " ", make("span", tally(item), "tally"));
      line.append(button);
      return line;
    }));
    if (focused !== undefined) (opener(focused) || $("search")).focus();
  }

  const opener = (item) => $("list").querySelector(`button[data-item="${item}"]`);

  function block(title, text, cut) {
    const part = make("div", undefined, "text");
    if (title) part.append(make("p", title, "label"));
    const body = make("pre", text === "" ? "(empty)" : text);
    body.dir = "auto";
    part.append(body);
    if (cut) part.append(make("p", `… cut: ${count(cut, "character")} in the record`, "soft"));
    return part;
  }

  function source(place) {
    const [record, , , id] = data.records[place];
    const link = make("a", record, "source");
    link.href = `#${id}`;
    return link;
  }

  function answer(r, item) {
    const { answers } = data;
    const card = make("article", undefined, "answer");
    const word = data.words[answers.word[r]];
    const head = make("h4", data.models[answers.model[r]][0]);
    if (word) head.append(" ", make("span", word, `fate ${answers.right[r] === 1 ? "right" : answers.right[r] === 0 ? "wrong" : "failed"}`));
    card.append(head);
    if (data.items.whole[item.i]) {
      card.append(block("", answers.text[r], answers.cut[r]));
      const short = [];
      for (const [name, title] of DETAILS) {
        const text = at(answers[name], r);
        if (!text) continue;
        if (text.length > 60 || text.includes("\n")) card.append(block(title, text));
        else short.push(`${title}: ${text}`);
      }
      if (short.length) card.append(make("p", short.join("; "), "detail"));
    }
    const draw = [["seed", at(answers.seed, r)], ["sample", at(answers.sample, r)]];
    const told = draw.filter(([, n]) => n !== null && n !== undefined && n !== 0).map(([name, n]) => `${name} ${n}, `).join("");
    const place = make("p", told, "soft source");
    place.append(source(answers.record[r]));
    card.append(place);
    return card;
  }

  function verdict(r) {
    const { verdicts } = data;
    const [, judge, other] = data.records[verdicts.record[r]];
    const word = VERDICT[data.words[verdicts.word[r]]];
    const line = make("tr");
    const model = make("th", data.models[verdicts.model[r]][0]);
    model.scope = "row";
    const order = data.words[verdicts.order[r]];
    const position = { "candidate-first": "first", "baseline-first": "second" }[order] || order;
    const reason = [data.words[verdicts.reason[r]], verdicts.text[r]].filter(Boolean).join("\n");
    const told = make("td", reason, "reply");
    told.dir = "auto";
    line.append(model, make("td", word), make("td", other), make("td", position), make("td", judge), told, make("td"));
    line.lastChild.append(source(verdicts.record[r]));
    return line;
  }

  function show(i) {
    const item = items[i];
    open = i;
    const whole = data.items.whole[i];
    const wanted = [members($("model").value), members($("other").value)];
    const rank = (m) => (wanted[0] && wanted[0].has(m) ? 0 : wanted[1] && wanted[1].has(m) ? 1 : 2);
    const head = make("h3", `${item.task} ${item.id}`);
    head.tabIndex = -1;
    const parts = [head];
    if (whole) parts.push(block("Prompt", item.prompt, 0));
    else parts.push(make("p", "The texts of this item are not on the page; its records hold them.", "left-out"));
    const rows = [...Array(item.answers[1] - item.answers[0]).keys()].map((k) => k + item.answers[0]);
    rows.sort((a, b) => rank(data.answers.model[a]) - rank(data.answers.model[b]) || a - b);
    const cards = make("div", undefined, "answers");
    cards.append(...rows.map((r) => answer(r, item)));
    parts.push(cards);
    if (item.verdicts[1] > item.verdicts[0]) {
      const table = make("table");
      const top = make("tr");
      for (const title of ["Model", "Verdict", "Against", "Shown", "Judge", "Reason or reply", "Record"]) {
        const cell = make("th", title);
        cell.scope = "col";
        top.append(cell);
      }
      const [tops, body] = [make("thead"), make("tbody")];
      tops.append(top);
      for (let r = item.verdicts[0]; r < item.verdicts[1]; r++) body.append(verdict(r));
      table.append(make("caption", "Verdicts"), tops, body);
      const scroll = make("div", undefined, "scroll");
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", "Verdicts");
      scroll.append(table);
      parts.push(scroll);
    }
    const [kind, first] = item.answers[1] > item.answers[0] ? ["answers", item.answers[0]] : ["verdicts", item.verdicts[0]];
    const record = data.records[data[kind].record[first]][0];
    parts.push(make("p", "Everything in a record on this item:", "soft"), make("code", `selectkd-eval show ${record} --item ${item.id}`));
    const back = make("button", "Back to the list");
    back.type = "button";
    back.addEventListener("click", close);
    parts.push(make("p"));
    parts[parts.length - 1].append(back);
    $("item").replaceChildren(...parts);
    $("item").hidden = false;
    mark();
    head.focus();
  }

  function mark() {
    for (const button of $("list").querySelectorAll("button")) {
      if (Number(button.dataset.item) === open) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  function close() {
    const button = opener(open);
    $("item").hidden = true;
    open = -1;
    mark();
    (button || $("search")).focus();
  }

  function option(select, value, text) {
    const one = make("option", text);
    one.value = value;
    select.append(one);
  }

  function controls() {
    for (const task of data.tasks) option($("task"), task, task);
    const methods = [...new Set(data.models.map(([, method]) => method))];
    for (const select of [$("model"), $("other")]) {
      for (const method of methods) {
        const seeds = data.models.filter(([, other]) => other === method);
        option(select, `s${method}`, seeds.length > 1 ? `${method}, ${seeds.length} seeds` : method);
        if (seeds.length > 1) for (const [label] of seeds) option(select, `m${label}`, label);
      }
    }
    const words = new Set([...data.answers.word, ...data.verdicts.word].map((w) => data.words[w]));
    for (const word of [...words].filter(Boolean).sort()) option($("fate"), `=${word}`, `has ${VERDICT[word] || word}`);
    $("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filter, 120); });
    for (const name of ["task", "fate", "model", "other"]) $(name).addEventListener("change", filter);
    $("back").addEventListener("click", () => { page--; list(); });
    $("on").addEventListener("click", () => { page++; list(); });
    $("form").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
    $("list").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) show(Number(button.dataset.item));
    });
    $("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      const buttons = [...$("list").querySelectorAll("button")];
      const next = buttons[buttons.indexOf(document.activeElement) + step];
      if (next) { next.focus(); event.preventDefault(); }
    });
    $("item").addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      $("status").textContent = "This browser cannot unpack the items (it lacks DecompressionStream): open the page in a newer one, or use selectkd-eval show RECORD --item ID.";
      return;
    }
    try {
      data = await unpack();
    } catch (error) {
      $("status").textContent = `The items could not be unpacked (${error.message}): the page is damaged, write it again.`;
      return;
    }
    items = index();
    controls();
    $("form").hidden = false;
    $("pages").hidden = false;
    filter();
    root.dataset.ready = String(Math.round(performance.now()));
  }
  start();
})();
