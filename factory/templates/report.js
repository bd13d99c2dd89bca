"use strict";
// The viewer. Every text that comes from the data is set as text, never as HTML; the page's policy forbids the latter.
(() => {
  const get = (id) => document.getElementById(id);
  const pairs = JSON.parse(get("data").textContent);
  const scores = new Map([
    ["length", ["length difference", (p) => minus(p.chosen_tokens, p.rejected_tokens)]],
    ["margin", ["margin", (p) => p.margin]],
    ["reward", ["reward difference", (p) => minus(p.reward_chosen, p.reward_rejected)]],
  ]);
  const CELLS = 4e6; // of the table that compares two texts: a tenth of a second
  const PAGE = 50; // entries of the list at once
  const fields = { strategy: "f-strategy", status: "f-status", reason: "f-reason", q: "f-text", score: "f-score", min: "f-min", max: "f-max" };
  let shown = pairs;
  let at = 0;

  function minus(a, b) {
    return a === undefined || b === undefined ? undefined : a - b;
  }

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // What would be invisible, or would turn the order of letters around, is spelled out.
  function visible(text) {
    return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
      (c) => `⟦U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟧`);
  }

  function said(turns) {
    return turns.map((turn) => turn.content).join("\n");
  }

  function haystack(pair) {
    pair.hay ??= [pair.pair_id, said(pair.prompt), said(pair.chosen), said(pair.rejected)].join("\n").toLowerCase();
    return pair.hay;
  }

  // ---- filters

  function options(id, every, values) {
    const counts = new Map();
    for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1);
    get(id).replaceChildren(element("option", { value: "" }, every));
    for (const [value, count] of counts) get(id).append(element("option", { value }, `${value} (${count})`));
  }

  function matching() {
    const want = Object.fromEntries(Object.entries(fields).map(([key, id]) => [key, get(id).value]));
    const text = want.q.trim().toLowerCase();
    const score = scores.get(want.score)[1];
    const [low, high] = [want.min, want.max].map((bound) => (bound === "" ? null : Number(bound)));
    return pairs.filter((pair) => {
      if (want.strategy && pair.strategy !== want.strategy) return false;
      if (want.status && pair.status !== want.status) return false;
      if (want.reason && pair.reason !== want.reason) return false;
      if (text && !haystack(pair).includes(text)) return false;
      if (low === null && high === null) return true;
      const value = score(pair);
      return value !== undefined && (low === null || value >= low) && (high === null || value <= high);
    });
  }

  function filter(wanted) {
    const before = wanted ?? shown[at]?.pair_id;
    shown = matching();
    at = Math.max(0, shown.findIndex((pair) => pair.pair_id === before));
    show();
  }

  // ---- the address

  function address() {
    const parts = new URLSearchParams();
    if (shown[at]) parts.set("pair", shown[at].pair_id);
    for (const [key, id] of Object.entries(fields)) {
      const value = get(id).value;
      if (value && !(key === "score" && value === "length")) parts.set(key, value);
    }
    return `#${parts}`;
  }

  // Fill the filters from the address and show its pair; an address that names a section is left to the browser.
  function follow() {
    const parts = new URLSearchParams(location.hash.slice(1));
    if (!["pair", ...Object.keys(fields)].some((key) => parts.has(key))) return false;
    get("filters").reset();
    for (const [key, id] of Object.entries(fields)) {
      const value = parts.get(key);
      if (value === null) continue;
      const control = get(id);
      control.value = value;
      // A value that the sample has none of must not quietly become "any".
      if (control.tagName === "SELECT" && control.value !== value) {
        if (key === "score") control.value = "length";
        else {
          control.append(element("option", { value }, `${value} (0)`));
          control.value = value;
        }
      }
    }
    filter(parts.get("pair"));
    const wanted = parts.get("pair");
    if (wanted && shown[at]?.pair_id !== wanted) missing(wanted);
    get("viewer").scrollIntoView();
    return true;
  }

  function missing(id) {
    const there = pairs.some((pair) => pair.pair_id === id);
    const why = there ? "is hidden by these filters" : `is not in this report; see it with: popalign show RUN --id ${id}`;
    get("pair").prepend(element("p", { class: "note", role: "alert" }, visible(`Pair ${id} ${why}`)));
  }

  // ---- one pair

  const WORDS = /^\s+|(?:[\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_])\s*/gu;

  // For each word of both texts whether the other one has it too, in the same order (longest common subsequence).
  function compare(left, right) {
    const words = [left, right].map((text) => text.match(WORDS) ?? []);
    const keys = words.map((side) => side.map((word) => word.trim()));
    const [n, m] = keys.map((side) => side.length);
    let [from, end] = [0, 0];
    while (from < n && from < m && keys[0][from] === keys[1][from]) from++;
    while (end < n - from && end < m - from && keys[0][n - 1 - end] === keys[1][m - 1 - end]) end++;
    const [rows, columns] = [n - from - end, m - from - end];
    if ((rows + 1) * (columns + 1) > CELLS) return null;
    const width = columns + 1;
    const best = new Uint16Array((rows + 1) * width);
    for (let i = rows - 1; i >= 0; i--)
      for (let j = columns - 1; j >= 0; j--)
        best[i * width + j] = keys[0][from + i] === keys[1][from + j]
          ? best[(i + 1) * width + j + 1] + 1
          : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    const same = words.map((side) => side.map((_, k) => k < from || k >= side.length - end));
    let [i, j] = [0, 0];
    while (i < rows && j < columns) {
      if (keys[0][from + i] === keys[1][from + j]) {
        same[0][from + i++] = same[1][from + j++] = true;
      } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
      else j++;
    }
    const common = same[0].filter(Boolean).length;
    return { words, same, common: n + m ? (2 * common) / (n + m) : 1 };
  }

  // Words as text, those of this side alone inside marks; neighbours share one.
  function marked(words, same) {
    const out = [];
    for (let k = 0; k < words.length; ) {
      let end = k;
      while (end < words.length && same[end] === same[k]) end++;
      const text = visible(words.slice(k, end).join(""));
      const inner = text.trimEnd();
      if (same[k] || !inner) out.push(text);
      else out.push(element("mark", {}, inner), text.slice(inner.length));
      k = end;
    }
    return out;
  }

  function turns(list) {
    return list.flatMap((turn) => [
      ...(list.length > 1 ? [element("p", { class: "role" }, visible(turn.role))] : []),
      element("p", { class: "text", dir: "auto" }, visible(turn.content)),
      ...cut(turn),
    ]);
  }

  function cut(turn) {
    return turn?.cut ? [element("p", { class: "fine" }, `cut here; ${turn.cut.toLocaleString("en")} characters in all`)] : [];
  }

  function side(name, pair, comparison) {
    const answer = pair[name];
    const index = name === "chosen" ? 0 : 1;
    const tokens = pair[`${name}_tokens`];
    const facts = [pair[`${name}_variant`], tokens === undefined ? null : `${tokens} tokens`].filter(Boolean).join(" · ");
    const text = element("p", { class: "text", dir: "auto" });
    if (!answer.length) text.append(element("span", { class: "none" }, "no completion"));
    else if (!said(answer)) text.append(element("span", { class: "none" }, "empty"));
    else if (comparison) text.append(...marked(comparison.words[index], comparison.same[index]));
    else text.append(visible(said(answer)));
    return element("section", { class: `side ${name}` },
      element("h4", {}, name === "chosen" ? "Chosen" : "Rejected", " ", element("span", { class: "fine" }, visible(facts))),
      text, ...cut(answer[0]));
  }

  function digits(value) {
    return Number(value).toFixed(2).replace("-", "−").replace(/^(?=\d)/, "+");
  }

  function facts(pair, comparison) {
    const out = [["split", pair.split], ["level", pair.level], ["sample", pair.sample]];
    const apart = scores.get("length")[1](pair);
    if (apart !== undefined) out.push(["length", `${apart > 0 ? "+" : apart < 0 ? "−" : ""}${Math.abs(apart)} tokens`]);
    if (pair.margin !== undefined) out.push(["margin", digits(pair.margin)]);
    if (pair.judge !== undefined) out.push(["judge", pair.judge]);
    if (scores.get("reward")[1](pair) !== undefined)
      out.push(["rewards", `${digits(pair.reward_chosen)} and ${digits(pair.reward_rejected)}`]);
    if (comparison) out.push(["in common", `${Math.round(100 * comparison.common)} % of words`]);
    return element("dl", { class: "facts small" }, ...out.filter(([, value]) => value !== undefined).map(([term, value]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, visible(String(value))))));
  }

  function article(pair) {
    const both = pair.chosen.length && pair.rejected.length;
    const compared = both ? compare(said(pair.chosen), said(pair.rejected)) : null;
    const outcome = pair.reason === undefined ? pair.status : `${pair.status}: ${pair.reason}`;
    const link = element("a", { href: address() }, visible(pair.pair_id));
    return [
      element("header", {},
        element("h3", { id: "pair-id" }, visible(pair.strategy), " ", element("span", { class: `chip ${["kept", "rejected", "failed"].find((s) => s === pair.status) ?? ""}` }, visible(outcome))),
        element("p", { class: "fine id" }, link), facts(pair, compared)),
      element("section", { class: "prompt" }, element("h4", {}, "Prompt"), ...turns(pair.prompt)),
      element("div", { class: "sides" }, ...["chosen", "rejected"].map((name) => side(name, pair, get("diff").checked ? compared : null))),
      ...(both && !compared ? [element("p", { class: "fine" }, "Too long to mark the differences.")] : []),
      ...(pair.judge_reason ? [element("section", { class: "prompt" }, element("h4", {}, "The judge’s reason"), element("p", { class: "text", dir: "auto" }, visible(pair.judge_reason)))] : []),
    ];
  }

  // ---- the page

  function entry(pair, index) {
    const first = visible(said(pair.prompt.slice(-1))).slice(0, 90);
    const button = element("button", { type: "button" },
      element("span", { class: "what" }, visible(pair.strategy), element("i", { class: `spot ${["kept", "rejected", "failed"].find((s) => s === pair.status) ?? ""}` }), element("span", { class: "fine" }, visible(pair.reason ?? pair.status))),
      element("span", { class: "first", dir: "auto" }, first));
    if (index === at) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => go(index));
    return element("li", {}, button);
  }

  function show() {
    const pair = shown[at];
    get("count").textContent = shown.length ? `${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")} pairs` : "No pair matches";
    get("previous").disabled = at <= 0;
    get("next").disabled = at >= shown.length - 1;
    const start = Math.floor(at / PAGE) * PAGE;
    get("list").setAttribute("start", start + 1);
    get("list").replaceChildren(...shown.slice(start, start + PAGE).map((item, i) => entry(item, start + i)));
    get("pair").replaceChildren(...(pair ? article(pair) : [element("p", { class: "none" }, "No pair matches these filters.")]));
    get("clear").classList.toggle("some", Object.entries(fields).some(([key, id]) => key !== "score" && get(id).value));
    const current = get("list").querySelector("[aria-current]");
    if (current) get("list").scrollTop = Math.max(0, current.offsetTop - get("list").clientHeight / 2);
  }

  function go(index) {
    if (index < 0 || index >= shown.length) return;
    at = index;
    show();
    history.replaceState(null, "", address());
  }

  function changed() {
    filter();
    history.replaceState(null, "", address());
    get("pair").querySelector("header a")?.setAttribute("href", address());
  }

  const actions = {
    j: () => go(at + 1), ArrowRight: () => go(at + 1),
    k: () => go(at - 1), ArrowLeft: () => go(at - 1),
    d: () => get("diff").click(),
    "/": () => get("f-text").focus(),
    "?": () => get("help").showModal(),
  };

  function pressed(event) {
    const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea, dialog *, .scroll");
    if (typing || get("help").open || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  function theme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const root = document.documentElement;
    const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
    const name = () => (get("theme").textContent = now() === "dark" ? "Light" : "Dark");
    get("theme").addEventListener("click", () => {
      root.dataset.theme = now() === "dark" ? "light" : "dark";
      name();
    });
    dark.addEventListener("change", name);
    get("theme").hidden = false;
    name();
  }

  function begin() {
    options("f-strategy", "any", pairs.map((pair) => pair.strategy));
    options("f-status", "any", pairs.map((pair) => pair.status));
    options("f-reason", "any", pairs.map((pair) => pair.reason));
    for (const [value, [label, score]] of scores)
      if (value === "length" || pairs.some((pair) => score(pair) !== undefined)) get("f-score").append(element("option", { value }, label));
    get("filters").hidden = get("browser").hidden = false;
    // Typing tells by "input"; of a choice some assistive tools and drivers tell by "change" alone.
    for (const told of ["input", "change"]) get("filters").addEventListener(told, changed);
    get("filters").addEventListener("submit", (event) => event.preventDefault());
    get("clear").addEventListener("click", () => {
      get("filters").reset();
      changed();
    });
    get("previous").addEventListener("click", () => go(at - 1));
    get("next").addEventListener("click", () => go(at + 1));
    get("diff").addEventListener("change", show);
    get("keys").addEventListener("click", () => get("help").showModal());
    addEventListener("keydown", pressed);
    addEventListener("hashchange", follow);
    theme();
    if (!follow()) show();
  }

  begin();
})();
