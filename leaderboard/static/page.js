// The page of the leaderboard. Every text of a record is shown by textContent, never as HTML.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROWS = 12;  // of a table, until all are asked for
const ORIGINS = ["ours", "yours", "published"];
const STATES = {
  passed: ["✓ passed", "passed"], failed: ["✗ failed", "failed"],
  "cannot be checked": ["? cannot be checked", "unchecked"],
};

// ---- The state of the view, which the address keeps ----

const fresh = () => ({
  track: DATA.first, board: "steps", hardware: "", origins: [...ORIGINS], query: "", sets: false,
  sort: "steps", down: false, slots: Array(SLOTS).fill(null), x: "steps", scale: "linear",
  loss: "near", all: false,
});
let view = fresh();

const track = () => DATA.tracks.find((each) => each.name === view.track);
const entries = () => (track() ? track().entries : []);
const chosen = () => view.slots.map((id, slot) => ({ slot, e: entries().find((e) => e.id === id) }))
  .filter(({ e }) => e);

const COLUMNS = {
  steps: ["Steps", (e) => e.steps, (e) => maybe(e.steps, whole)],
  seconds: ["Seconds", (e) => e.seconds, (e) => digits(e.seconds)],
  loss: ["Mean loss ± sd", (e) => e.loss, (e) => maybe(e.loss, (x) => x.toFixed(4))],
  n: ["Runs", (e) => e.n, (e) => maybe(e.n, whole)],
  p: ["p", (e) => e.p, (e) => pText(e.p)],
  peak: ["Peak memory", (e) => e.peak_memory_bytes, (e) => bytes(e.peak_memory_bytes)],
  state: ["Optimizer state", (e) => e.state_bytes, (e) => bytes(e.state_bytes)],
  date: ["Date", (e) => e.date || null, (e) => e.date || "–"],
};

function classes() {
  const counted = new Map();
  entries().filter((e) => e.hardware)
    .forEach((e) => counted.set(e.hardware, (counted.get(e.hardware) || 0) + 1));
  return [...counted.keys()].sort((a, b) => counted.get(b) - counted.get(a) || (a < b ? -1 : 1));
}

/**
 * The first choice: the best three of the board, and the baseline that they were raced against.
 * Where nothing is proven, the first three with curves. Of one entrant, one.
 */
function choose() {
  const proven = ranked().map((row) => row.e);
  const best = (proven.length ? proven : entries()).filter((e) => e.curve.length)
    .filter((e, i, all) => all.findIndex((other) => other.label === e.label) === i).slice(0, 3);
  const against = best.map((e) => e.against).find((name) => name);
  const base = against && entries().find((e) => e.label === against
    && best.some((other) => other.record === e.record));
  const ids = [...new Set([...best, ...(base ? [base] : [])].map((e) => e.id))];
  view.slots = Array.from({ length: SLOTS }, (_, slot) => ids[slot] || null);
}

function writeAddress() {
  const plainView = fresh();
  const parts = new URLSearchParams();
  for (const key of ["track", "board", "hardware", "query", "sort", "x", "scale", "loss"]) {
    if (view[key] !== plainView[key] || key === "track") parts.set(key, view[key]);
  }
  if (view.down) parts.set("down", "1");
  if (view.sets) parts.set("sets", "1");
  if (view.all) parts.set("all", "1");
  if (view.origins.length < ORIGINS.length) parts.set("origin", view.origins.join(","));
  parts.set("pick", view.slots.map((id) => id || "").join(",").replace(/,+$/, ""));
  const hash = `#${parts}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const oneOf = (key, allowed, otherwise) => (allowed.includes(parts.get(key))
    ? parts.get(key) : otherwise);
  view = fresh();
  view.track = oneOf("track", DATA.tracks.map((each) => each.name), view.track);
  view.board = oneOf("board", ["steps", "seconds"], view.board);
  view.hardware = oneOf("hardware", classes(), "");
  settle();
  view.query = parts.get("query") || "";
  view.sort = oneOf("sort", Object.keys(COLUMNS), view.board);
  view.down = parts.get("down") === "1";
  view.sets = parts.get("sets") === "1";
  view.all = parts.get("all") === "1";
  view.x = oneOf("x", ["steps", "tokens", "seconds"], "steps");
  view.scale = oneOf("scale", ["linear", "log"], "linear");
  view.loss = oneOf("loss", ["near", "whole"], "near");
  if (parts.has("origin")) {
    view.origins = ORIGINS.filter((name) => parts.get("origin").split(",").includes(name));
  }
  if (parts.has("pick")) {
    const known = new Set(entries().map((e) => e.id));
    const ids = parts.get("pick").split(",").slice(0, SLOTS);
    view.slots = view.slots.map((_, i) => (known.has(ids[i]) && ids.indexOf(ids[i]) === i
      ? ids[i] : null));
  } else {
    choose();
  }
}

/**
 * The board of seconds is of one class of hardware: take the one with the most entries. A track of
 * which nothing says its steps has no other board.
 */
function settle() {
  if (!entries().some((e) => e.steps !== null) && entries().length) {
    Object.assign(view, { board: "seconds", sort: view.sort === "steps" ? "seconds" : view.sort });
  }
  if (view.board === "seconds" && !view.hardware) view.hardware = classes()[0] || "";
}

// ---- Which entries are shown, and in which order ----

/** Claimed entries of the board with their ranks, the best first, whatever the filters say. */
function ranked() {
  const value = COLUMNS[view.board][1];
  const board = entries().filter((e) => e.claimed && value(e) !== null
    && (view.board === "steps" || e.hardware === view.hardware));
  board.sort((a, b) => value(a) - value(b) || a.loss - b.loss);
  return board.map((e) => ({ e, rank: 1 + board.filter((o) => value(o) < value(e)).length }));
}

function filtered() {
  const words = view.query.toLowerCase().split(/\s+/).filter((word) => word);
  const value = COLUMNS[view.sort][1];
  return entries()
    .filter((e) => view.origins.includes(e.origin)
      && (!view.hardware || e.hardware === view.hardware)
      && (!view.sets || e.sets.includes(view.board))
      && words.every((word) => `${e.label} ${e.entrant}`.toLowerCase().includes(word)))
    .sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = x < y ? -1 : x > y ? 1 : 0;
      return (view.down ? -order : order) || a.steps - b.steps || a.loss - b.loss
        || a.seconds - b.seconds;
    });
}

// ---- The tables of the records ----

function link(href, text) {
  return href ? make("a", { href }, text) : make("span", {}, text);
}

function nameCell(e) {
  const cell = make("th", { scope: "row", class: "entry", role: "rowheader" });
  cell.append(make("div", { class: "name" }, e.label));
  if (e.new) cell.append(make("div", { class: "small" }, e.new));
  const by = e.authors.length ? ` by ${e.authors.join(", ")}` : "";
  const of = make("div", { class: "small" }, link(e.href, e.record), by);
  const on = make("div", { class: "small" }, e.hardware || "hardware not known");
  const badges = make("div", {}, make("span", { class: `badge ${e.origin}` }, e.origin));
  if (e.sets.length) {
    const what = e.origin === "published" ? "by its own list, record" : "record";
    badges.append(make("span", { class: "badge sets" }, `★ ${what} in ${e.sets.join(" and ")}`));
  }
  cell.append(of, on, badges);
  if (e.doubts.length) {
    const doubt = make("div", { class: "warning" }, "⚠ Questioned by ");
    e.doubts.forEach((each, i) => doubt.append(i ? ", " : "", link(each.href, each.name)));
    cell.append(doubt);
  }
  return cell;
}

function againstCell(e) {
  const parts = [];
  if (e.fewer_steps !== null) parts.push(`steps ${times(e.fewer_steps)}`);
  if (e.less_time !== null) parts.push(`time ${times(e.less_time)}`);
  if (!parts.length) return ["–"];
  return [...parts.map((part) => make("div", {}, part)),
    make("div", { class: "small" }, e.against)];
}

function stateCell(e) {
  const [text, kind] = STATES[e.state] || STATES["cannot be checked"];
  const shown = [make("span", { class: kind }, text)];
  if (e.why.length && e.claimed) {
    shown.push(make("details", {},
      make("summary", {}, e.state === "passed" ? "remarks" : "why", make("span", { class: "hidden" }, ` for ${e.name}`)),
      make("ul", { class: "plain" }, ...e.why.map((finding) => make("li", {}, finding)))));
  }
  return shown;
}

function pickCell(e) {
  const box = make("input", { type: "checkbox", "data-pick": e.id,
    "aria-label": `Choose ${e.name}` });
  box.checked = view.slots.includes(e.id);
  return make("td", { class: "pick", role: "cell" }, make("label", {}, box));
}

function head(keys, quiet) {
  const row = make("tr", { role: "row" });
  const plainHead = (text, more = {}) => row.append(
    make("th", { scope: "col", role: "columnheader", ...more }, text));
  plainHead("Choose", { class: "pick" });
  if (!quiet) plainHead("Rank", { class: "number" });
  plainHead("Record");
  for (const key of keys) {
    if (!COLUMNS[key]) {
      plainHead({ against: "Baseline’s cost over its own",
        verified: "Verification", reason: "Why it is not proven" }[key]);
      continue;
    }
    const now = view.sort === key ? (view.down ? "descending" : "ascending") : null;
    const number = key === "date" ? "date" : "number";
    row.append(make("th", { scope: "col", role: "columnheader", class: number, "aria-sort": now },
      make("button", { type: "button", "data-sort": key }, COLUMNS[key][0])));
  }
  return make("thead", { role: "rowgroup" }, row);
}

function body(rows, keys, ranks) {
  const part = make("tbody", { role: "rowgroup" });
  for (const e of rows) {
    const row = make("tr", { role: "row" }, pickCell(e));
    if (ranks) {
      row.append(make("td", { class: "number rank", role: "cell", "data-label": "Rank" },
        ranks.has(e.id) ? String(ranks.get(e.id)) : "–"));
    }
    row.append(nameCell(e));
    for (const key of keys) {
      const cell = (label, kind, ...children) => row.append(
        make("td", { class: kind, role: "cell", "data-label": label }, ...children));
      if (key === "against") cell("Baseline’s cost over its own", "against", ...againstCell(e));
      else if (key === "verified") cell("Verification", "verified", ...stateCell(e));
      else if (key === "reason") {
        cell("Why it is not proven", "reason", e.why.length > 1
          ? make("ul", { class: "plain" }, ...e.why.map((finding) => make("li", {}, finding)))
          : e.why[0] || "not said");
      } else {
        cell(COLUMNS[key][0], key === "date" ? "date" : "number", COLUMNS[key][2](e),
          key === "loss" && e.sd !== null
            ? make("div", { class: "small" }, `± ${e.sd.toFixed(4)}`) : null);
      }
    }
    part.append(row);
  }
  return part;
}

const some = (rows) => (view.all ? rows : rows.slice(0, ROWS));

function showTables() {
  const rows = filtered();
  const claimed = rows.filter((e) => e.claimed);
  const others = rows.filter((e) => !e.claimed);
  const ranks = new Map(ranked().map(({ e, rank }) => [e.id, rank]));
  const total = entries().filter((e) => e.claimed).length;
  const on = view.board === "seconds" && view.hardware ? `seconds on ${view.hardware}` : view.board;
  const order = `${COLUMNS[view.sort][0].toLowerCase()}, `
    + `${view.down ? "largest" : "smallest"} first`;
  $("records").textContent = track() ? `Records of ${view.track}` : "No records yet";
  $("status").textContent = `${claimed.length} of ${plural(total, "record")} `
    + `${claimed.length === 1 ? "matches" : "match"} the filters`
    + (others.length ? `, and ${others.length} not proven` : "") + `; by ${order}.`;
  const keys = ["steps", "seconds", "loss", "n", "p", "peak", "state", "against", "verified",
    "date"];
  const caption = track() ? `Board of ${on}, to a validation loss of ${track().target}` : "";
  const focus = document.activeElement && document.activeElement.dataset;
  const again = focus && focus.sort ? [`[data-sort="${focus.sort}"]`,
    document.activeElement.closest(".scroll").id] : focus && focus.pick
    ? [`[data-pick="${focus.pick}"]`, document.activeElement.closest(".scroll").id] : null;
  $("proven").replaceChildren(claimed.length
    ? make("table", { class: "cards", role: "table" }, make("caption", {}, caption),
      head(keys, false), body(some(claimed), keys, ranks))
    : make("p", { class: "note" }, track()
      ? "No record matches. Change the filters, or race on this track."
      : "Race, then make a record of it: make record."));
  const few = ["steps", "seconds", "loss", "n", "state", "against", "reason"];
  $("unproven-part").hidden = !others.length;
  $("unproven").replaceChildren(...(others.length
    ? [make("table", { class: "cards", role: "table" },
      make("caption", { class: "hidden" }, "Raced, not proven"),
      head(few, true), body(some(others), few, null))] : []));
  const longest = Math.max(claimed.length, others.length);
  $("all").hidden = longest <= ROWS;
  $("all").textContent = view.all ? `Show the first ${ROWS} rows of each table`
    : `Show all ${claimed.length + others.length} rows`;
  if (again) {
    const node = $(again[1]).querySelector(again[0]);
    if (node) node.focus({ preventScroll: true });
  }
}

// ---- The controls ----

function pill(name, value, text) {
  return make("label", {}, make("input", { type: "radio", name, value }), make("span", {}, text));
}

function showControls() {
  if (!byName("track").length) {
    $("tracks").append(...DATA.tracks.map((each) => pill("track", each.name, each.name)));
    $("sort").append(...Object.entries(COLUMNS).flatMap(([key, [text]]) => [
      make("option", { value: `${key} up` }, `${text}, smallest first`),
      make("option", { value: `${key} down` }, `${text}, largest first`)]));
  }
  const check = (name, value) => byName(name).forEach((box) => {
    box.checked = Array.isArray(value) ? value.includes(box.value) : box.value === value;
  });
  check("track", view.track);
  check("board", view.board);
  check("origin", view.origins);
  check("x", view.x);
  check("scale", view.scale);
  check("loss", view.loss);
  const any = view.board === "seconds" ? [] : [make("option", { value: "" }, "Any")];
  $("hardware").replaceChildren(...any,
    ...classes().map((name) => make("option", { value: name }, name)));
  $("hardware").value = view.hardware;
  if ($("query").value !== view.query) $("query").value = view.query;
  $("sets").checked = view.sets;
  $("sort").value = `${view.sort} ${view.down ? "down" : "up"}`;
}

function pick(id, on) {
  const free = view.slots.indexOf(null);
  const at = view.slots.indexOf(id);
  const full = on && at < 0 && free < 0;
  if (on && at < 0 && !full) view.slots[free] = id;
  else if (!on && at >= 0) view.slots[at] = null;
  $("picking").className = full ? "note full" : "note";
  $("picking").textContent = full
    ? `One chart holds ${SLOTS} records. Remove one to choose another.`
    : `${plural(chosen().length, "record")} chosen of ${SLOTS} at most.`;
  update();
}

function listen() {
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("change", (event) => {
    const { name, value, id, checked } = event.target;
    if (name === "track") {
      Object.assign(view, { track: value, hardware: "" });
      settle();
      choose();
    } else if (name === "board") {
      Object.assign(view, { board: value, sort: value, down: false });
      settle();
    } else if (name === "origin") {
      view.origins = byName("origin").filter((box) => box.checked).map((box) => box.value);
    } else if (id === "hardware") view.hardware = value;
    else if (id === "sets") view.sets = checked;
    else if (id === "sort") {
      view.sort = value.split(" ")[0];
      view.down = value.endsWith("down");
    }
    update();
  });
  $("query").addEventListener("input", () => {
    view.query = $("query").value;
    update();
  });
  $("clear").addEventListener("click", () => {
    Object.assign(view, { origins: [...ORIGINS], query: "", sets: false, hardware: "" });
    settle();
    update();
  });
  $("all").addEventListener("click", () => {
    view.all = !view.all;
    update();
  });
  document.querySelector("form.axes").addEventListener("change", (event) => {
    view[event.target.name] = event.target.value;
    update();
  });
  document.addEventListener("change", (event) => {
    if (event.target.dataset.pick) pick(event.target.dataset.pick, event.target.checked);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && button.dataset.sort) {
      view.down = view.sort === button.dataset.sort && !view.down;
      view.sort = button.dataset.sort;
      update();
    } else if (button && button.dataset.drop) {
      pick(button.dataset.drop, false);
      $("curves-title").focus({ preventScroll: true });
    }
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("records").focus();
  });
  window.addEventListener("hashchange", () => {
    readAddress();
    update();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showCharts);
  window.matchMedia("(max-width: 47.9rem)").addEventListener("change", showCharts);
}

function showCharts() {
  showCurves();
  showMemory();
  showHistory();
}

function update() {
  showControls();
  showTables();
  showPairs();
  showCharts();
  writeAddress();
}

function start() {
  const all = DATA.tracks.flatMap((each) => each.entries);
  $("lead").textContent = `What each optimizer needs to reach a target validation loss: `
    + `${plural(all.length, "result")} on ${plural(DATA.tracks.length, "track")}, `
    + `${all.filter((e) => e.origin === "published").length} of them published by others.`;
  readAddress();
  listen();
  update();
}

start();
