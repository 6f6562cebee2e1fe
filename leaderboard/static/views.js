// What the page shows of the chosen records: curves, pairs, memory, history, each also in words.
"use strict";

/** A small table of data. rows: texts; the first cell of a row names it. */
function table(caption, headings, rows) {
  return make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...headings.map((text, i) => make("th",
      { scope: "col", class: i ? "number" : null }, text)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text, i) => (i
      ? make("td", { class: "number" }, text) : make("th", { scope: "row" }, text)))))));
}

const AXES = {
  steps: ["Steps", (p) => p[0], whole], tokens: ["Tokens", (p) => p[1], count],
  seconds: ["Seconds of training", (p) => p[2], digits],
};

function showCurves() {
  const picked = chosen();
  const [title, place, format] = AXES[view.x];
  const log = view.scale === "log";
  const lines = picked.map(({ slot, e }) => ({
    name: e.name, slot, e,
    points: e.curve.filter((p) => place(p) !== null && p[3] !== null && (!log || place(p) > 0))
      .map((p) => ({ x: place(p), y: p[3] })),
  })).filter((line) => line.points.length);
  $("legend").replaceChildren(...picked.map(({ slot, e }) => make("li", {}, Charts.swatch(slot),
    make("span", {}, e.curve.length ? e.name : `${e.name} (no curve)`),
    make("button", { type: "button", "data-drop": e.id,
      "aria-label": `Remove ${e.name} from the charts` }, "×"))));
  Charts.show("curves", lines.length > 0);
  $("curves-axes").hidden = !picked.length;
  $("curves-details").hidden = !lines.length;
  const absent = picked.length - lines.length;
  $("curves-summary").textContent = !picked.length
    ? "No record is chosen. Choose some in the first column of the tables."
    : `Mean validation loss of ${plural(lines.length, "record")} by ${title.toLowerCase()}`
      + `${lines.length ? `: ${lines.map(({ name, points }) => `${shortened(name, 40)} ends at `
        + `${points[points.length - 1].y.toFixed(3)}`).join("; ")}` : ""}.`
      + (absent ? ` ${plural(absent, "record")} without a curve on this axis.` : "");
  if (lines.length) {
    Charts.curves(lines, {
      title, format, log, target: track().target, whole: view.loss === "whole",
    });
  }
  const parts = [0.25, 0.5, 0.75, 1];
  $("curves-table").replaceChildren(table(
    "Mean validation loss, at the last validation before a part of the record’s run",
    ["Record", "¼ of its run", "½", "¾", "Whole run", `${title} at the end`],
    lines.map(({ name, points }) => {
      const end = points[points.length - 1].x;
      const at = (part) => points.filter((p) => p.x <= end * part + 1e-9).pop();
      return [name, ...parts.map((part) => (at(part) ? at(part).y.toFixed(4) : "–")), format(end)];
    })));
}

// ---- Pairs ----

function pairsOf(first, second, pairs) {
  const [i, j] = [entries().indexOf(first), entries().indexOf(second)];
  const cell = pairs.cells.find((c) => c[0] === Math.min(i, j) && c[1] === Math.max(i, j));
  if (!cell) return null;
  const [, , ratio, p, statistic, distinct, bound] = cell;
  if (i < j) return { ratio, p, statistic, distinct, bound };
  const turned = { "at least": "at most", "at most": "at least" }[bound] || "";
  return { ratio: 1 / ratio, p, distinct, bound: turned,
    statistic: statistic === null ? null : -statistic };
}

function pairCell(first, second, pairs) {
  if (first === second) return make("td", { class: "number" }, "–");
  const pair = pairsOf(first, second, pairs);
  if (!pair) return make("td", { class: "number small" }, "no test");
  const better = pair.statistic === null ? pair.ratio > 1 : pair.statistic > 0;
  const sign = { "at least": "≥ ", "at most": "≤ " }[pair.bound] || "";
  const [mark, kind, words] = !pair.distinct ? ["", "small", "not distinguishable"]
    : better ? ["▲ ", "faster", "faster"] : ["▼ ", "slower", "slower"];
  const proof = pair.statistic !== null ? `S ${pair.statistic.toFixed(4).replace("-", "−")}`
    : pair.p === null ? "no p" : `p ${pText(pair.p)}`;
  return make("td", { class: "number" },
    make("span", { class: kind }, make("span", { "aria-hidden": "true" }, mark),
      sign + times(pair.ratio)),
    make("span", { class: "hidden" }, `, ${words}, `),
    make("div", { class: "small" }, proof));
}

function showPairs() {
  const seconds = view.board === "seconds";
  const pairs = track() && (seconds ? track().pairs.seconds[view.hardware] : track().pairs.steps);
  const compared = chosen().filter(({ e }) => !seconds || e.hardware === view.hardware);
  const picked = compared.map(({ e }) => e);
  const unit = seconds ? `seconds on ${view.hardware}` : "steps";
  $("pairs").hidden = !pairs || picked.length < 2;
  if ($("pairs").hidden) {
    $("pairs-summary").textContent = pairs
      ? `Choose two records or more to compare them in ${unit}.`
      : "No entry of this track says its seconds and its hardware.";
    return;
  }
  const grid = picked.map((a) => picked.map((b) => (a === b ? null : pairsOf(a, b, pairs))));
  const tested = grid.flatMap((row, i) => row.filter((pair, j) => j > i && pair));
  const apart = tested.filter((pair) => pair.distinct).length;
  $("pairs-summary").textContent = `${apart} of ${plural(tested.length, "pair")} can be told apart `
    + `in ${unit}. A cell is the column’s cost over the row’s: above 1, the row is faster (▲). `
    + (pairs.test === "track3"
      ? "S is the statistic of track 3’s rule for pairs, which must be 0.004 or more on one side."
      : `p is of Welch’s t-test of the logarithms of the cost of the target, with Holm’s `
        + `correction for all ${plural(pairs.family, "pair")} of this board. From 0.05 on, the two `
        + `are not distinguishable.`)
    + (seconds ? " Each run’s own clock is compared; the table’s ratio in time is of turns "
      + "that were neighbours, where runs took turns." : "");
  $("pairs").replaceChildren(make("table", { class: "matrix" },
    make("caption", {}, `The column’s ${unit} over the row’s`),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Record"),
      ...compared.map(({ slot, e }) => make("th", { scope: "col", class: "number" },
        Charts.swatch(slot), make("div", {}, ...named(e.name, 24)))))),
    make("tbody", {}, ...compared.map(({ slot, e }) => make("tr", {}, make("th", { scope: "row" },
      Charts.swatch(slot), make("div", {}, ...named(e.name, 24))),
    ...picked.map((other) => pairCell(e, other, pairs)))))));
}

// ---- Memory, and the history ----

function showMemory() {
  const name = view.hardware || classes()[0] || "";
  const rows = filtered().filter((e) => e.hardware === name && e.seconds !== null
    && e.state_bytes !== null);
  const picked = new Map(chosen().map(({ slot, e }) => [e.id, slot]));
  const points = rows.map((e) => ({ x: e.state_bytes, y: e.seconds, name: e.name,
    slot: picked.has(e.id) ? picked.get(e.id) : null }));
  Charts.show("memory", points.length > 0);
  $("memory-details").hidden = !points.length;
  const least = points.reduce((a, b) => (a && a.x <= b.x ? a : b), null);
  const fastest = points.reduce((a, b) => (a && a.y <= b.y ? a : b), null);
  $("memory-summary").textContent = !points.length
    ? "None of the entries shown above says both its seconds and its optimizer state."
    : `${plural(points.length, "entry").replace("entrys", "entries")} on ${name}. `
      + `${fastest.name} takes the least time, ${digits(fastest.y)} s, with ${bytes(fastest.x)}; `
      + `${least.name} needs the least state, ${bytes(least.x)}, and ${digits(least.y)} s. `
      + "Chosen records have their markers of the chart above.";
  if (points.length) Charts.scatter(points, { bytes });
  $("memory-table").replaceChildren(table(`Seconds of training and optimizer state on ${name}`,
    ["Record", "Seconds", "Optimizer state"],
    points.map((p) => [p.name, digits(p.y), bytes(p.x)])));
}

function showHistory() {
  const seconds = view.board === "seconds";
  const [heading, value, format] = COLUMNS[view.board];
  const unit = seconds ? `seconds on ${view.hardware}` : "steps";
  const rows = entries().filter((e) => e.sets.includes(view.board) && Number.isFinite(day(e.date))
    && value(e) !== null && (!seconds || e.hardware === view.hardware))
    .sort((a, b) => day(a.date) - day(b.date) || value(b) - value(a));
  const steps = rows.filter((e, i) => rows.slice(0, i).every((o) => value(e) <= value(o)));
  Charts.show("history", rows.length > 0);
  $("history-details").hidden = !rows.length;
  if (!rows.length) {
    $("history-summary").textContent = `No entry has set a record in ${unit} on this track yet.`;
    return;
  }
  const [first, last] = [rows[0], steps[steps.length - 1]];
  $("history-summary").textContent = `${view.track} in ${unit}: ${plural(rows.length, "record")}, `
    + (steps.length > 1 ? `from ${format(first)} (${first.name}, ${first.date}) to ` : "")
    + `${format(last)} (${last.name}, ${last.date}). `
    + "A record of ours beats the one before it by a test (RULES.md). Filled circles are ours and "
    + "yours; open squares are published results, as their own lists have them."
    + (steps.length < rows.length
      ? " Beside the stairs are those that were dated after a better one." : "");
  const days = entries().map((e) => day(e.date)).filter(Number.isFinite);
  const end = Math.max(...days);
  const start = day(first.date);
  const margin = Math.max(1, Math.round((end - start) * 0.04));
  const points = (shown) => shown.map((e) => ({ x: day(e.date), y: value(e), name: e.name,
    published: e.origin === "published" }));
  Charts.staircase(points(steps), points(rows.filter((e) => !steps.includes(e))), {
    log: value(first) > 4 * value(last), start: start - margin, end: end + margin, day: dateOf, title: heading,
    format: (y) => `${seconds ? digits(y) : whole(y)} ${view.board}`,
  });
  $("history-table").replaceChildren(table(`Records of ${view.track} in ${unit}, oldest first`,
    ["Record", "Date", heading, "Origin"],
    rows.map((e) => [e.name, e.date, format(e), e.origin])));
}
