// The charts of the page. Lines differ by dash and marker, not by colour alone.
"use strict";

const SLOTS = 8;  // as many records as one chart of curves can hold
const DASHES = [[], [7, 4], [2, 3], [11, 4, 2, 4], [4, 2], [14, 5], [1, 4], [9, 3, 2, 3, 2, 3]];
const MARKERS = ["circle", "rect", "triangle", "rectRot", "crossRot", "star", "circle", "triangle"];
const FILLED = [true, true, true, true, true, true, false, false];
const FEW = 12;  // markers on a line
const NEAR = 0.36;  // nats per token above the target: what is called near to it

const Charts = (() => {
  const live = {};  // charts by the id of their canvas

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (slot) => css(slot === null ? "--plain" : `--c${slot}`);
  const narrow = () => window.matchMedia("(max-width: 47.9rem)").matches;

  /** A chart on a canvas, in place of the one before it. */
  function draw(id, config) {
    if (live[id]) live[id].destroy();
    config.options.animation = false;
    config.options.responsive = true;
    config.options.maintainAspectRatio = false;
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 12;
    live[id] = new Chart(document.getElementById(id), config);
  }

  function axis(title, more) {
    return {
      title: { display: true, text: title, color: css("--soft"), font: { size: 13 } },
      grid: { color: css("--line"), tickColor: css("--line") },
      border: { color: css("--edge") },
      ...more,
      ticks: { color: css("--soft"), maxRotation: 0, autoSkipPadding: 14, ...(more.ticks || {}) },
    };
  }

  /** Ticks of a logarithmic axis: 1, 2 and 5 times a power of ten; more on a short axis. */
  function logTicks(format) {
    return {
      callback: (value, _, ticks) => {
        const short = ticks[ticks.length - 1].value < 10 * ticks[0].value;
        const first = Number(value.toExponential(6).split("e")[0]);
        return (short ? [1, 2, 3, 4, 5, 6, 8] : [1, 2, 5]).includes(first) ? format(value) : null;
      },
    };
  }

  function tooltip(callbacks) {
    return {
      backgroundColor: css("--ink"), titleColor: css("--paper"), bodyColor: css("--paper"),
      footerColor: css("--paper"), usePointStyle: true, padding: 8, callbacks,
    };
  }

  /** A dashed line at the target, with its name at the left end. */
  const target = {
    id: "target",
    afterDatasetsDraw(chart, _, options) {
      const { ctx, chartArea: area, scales } = chart;
      const y = scales.y.getPixelForValue(options.value);
      if (!Number.isFinite(y) || y < area.top || y > area.bottom) return;
      ctx.save();
      ctx.strokeStyle = css("--ink");
      ctx.setLineDash([3, 3]);
      ctx.beginPath();
      ctx.moveTo(area.left, y);
      ctx.lineTo(area.right, y);
      ctx.stroke();
      ctx.fillStyle = css("--ink");
      ctx.font = `12px ${getComputedStyle(document.body).fontFamily}`;
      ctx.textBaseline = "top";
      ctx.fillText(options.text, area.left + 6, y + 4);
      ctx.restore();
    },
  };

  /** Names beside points, where there is room; the chosen ones come first. */
  const names = {
    id: "names",
    afterDatasetsDraw(chart, _, options) {
      const { ctx, chartArea: area } = chart;
      const taken = [];
      const points = [];
      chart.data.datasets.forEach((set, i) => {
        chart.getDatasetMeta(i).data.forEach((element, k) => {
          if (!set.named || set.data[k].last) return;
          points.push({ x: element.x, y: element.y, text: set.data[k].name, first: set.chosen });
          taken.push([element.x - 6, element.y - 6, element.x + 6, element.y + 6]);
        });
      });
      points.sort((a, b) => Number(b.first) - Number(a.first));
      ctx.save();
      ctx.font = `12px ${getComputedStyle(document.body).fontFamily}`;
      ctx.textBaseline = "middle";
      for (const point of points) {
        const text = shortened(point.text, narrow() ? 18 : 30);
        const wide = ctx.measureText(text).width;
        const beside = [
          [point.x + 10, point.y], [point.x - 10 - wide, point.y],
          [point.x - wide / 2, point.y - 15], [point.x - wide / 2, point.y + 15],
        ];
        const corners = [[point.x + 8, point.y - 12], [point.x + 8, point.y + 12]];
        const places = options.corners ? corners : [...beside, ...corners];
        const free = places.find(([x, y]) => {
          const box = [x - 2, y - 8, x + wide + 2, y + 8];
          const inside = box[0] >= area.left && box[2] <= chart.width && box[1] >= area.top
            && box[3] <= area.bottom;
          return inside && !taken.some((other) => box[0] < other[2] && other[0] < box[2]
            && box[1] < other[3] && other[1] < box[3]);
        });
        if (!free) continue;
        taken.push([free[0] - 2, free[1] - 8, free[0] + wide + 2, free[1] + 8]);
        ctx.fillStyle = point.first ? css("--ink") : css("--soft");
        ctx.fillText(text, free[0], free[1]);
      }
      ctx.restore();
    },
  };

  function mark(slot, radius) {
    const filled = slot !== null && FILLED[slot];
    return {
      pointStyle: slot === null ? "circle" : MARKERS[slot],
      pointRadius: radius, pointHoverRadius: 7, pointBorderWidth: 1.75,
      pointBorderColor: colour(slot),
      pointBackgroundColor: filled ? colour(slot) : css("--paper"),
    };
  }

  /** Where the first of the lines comes down to a loss. */
  function entry(lines, loss) {
    return Math.min(...lines.map(({ points }) => {
      const i = points.findIndex((point) => point.y <= loss);
      if (i <= 0) return i < 0 ? Infinity : points[0].x;
      const [a, b] = [points[i - 1], points[i]];
      return a.x + (b.x - a.x) * (a.y - loss) / (a.y - b.y);
    }).filter(Number.isFinite));
  }

  /**
   * Mean curves. lines: {name, slot, points: [{x, y}]}. The loss axis ends a little above the
   * target unless the whole is asked for.
   */
  function curves(lines, options) {
    const lowest = Math.min(options.target, ...lines.flatMap((l) => l.points.map((p) => p.y)));
    const reach = options.target + NEAR;
    const datasets = lines.map((line) => {
      const visible = options.whole
        ? line.points : line.points.filter((point) => point.y <= reach);
      const every = Math.max(1, Math.ceil(visible.length / FEW));
      const last = line.points.length - 1;
      return {
        label: line.name, data: line.points, borderColor: colour(line.slot), borderWidth: 2,
        borderDash: DASHES[line.slot], tension: 0, ...mark(line.slot, 0),
        pointRadius: line.points.map((_, i) => ((last - i) % every === 0 ? 4.5 : 0)),
        pointHitRadius: 8,
      };
    });
    const low = lowest - 0.04 * (reach - lowest);
    const first = options.log ? undefined : 0;
    const start = { min: options.whole ? first : entry(lines, reach) };
    const log = options.log ? { type: "logarithmic", ticks: logTicks(options.format), ...start }
      : { type: "linear", ...start,
        ticks: { callback: (value) => options.format(value), includeBounds: false } };
    draw("curves", {
      type: "line",
      data: { datasets },
      plugins: [target],
      options: {
        interaction: { mode: "nearest", intersect: false },
        scales: {
          x: axis(options.title, log),
          y: axis("Validation loss, nats per token", options.whole ? {}
            : { min: low, max: reach, ticks: { includeBounds: false } }),
        },
        plugins: {
          legend: { display: false },
          target: { value: options.target, text: `target ${options.target}` },
          tooltip: tooltip({
            title: (items) => items[0].dataset.label,
            label: (item) => `${options.title.toLowerCase()} ${options.format(item.parsed.x)}: `
              + `loss ${item.parsed.y.toFixed(4)}`,
          }),
        },
      },
    });
  }

  /** A point for each entry. points: {x, y, name, slot}; slot is null for those not chosen. */
  function scatter(points, options) {
    const set = (slot) => ({
      data: points.filter((point) => point.slot === slot), named: true, chosen: slot !== null,
      label: "", ...mark(slot, slot === null ? 4.5 : 6.5),
    });
    const slots = [...new Set(points.map((point) => point.slot))];
    draw("memory", {
      type: "scatter",
      data: { datasets: slots.map(set) },
      plugins: [names],
      options: {
        layout: { padding: { right: narrow() ? 16 : 60, top: 8 } },
        scales: {
          x: axis("Optimizer state", {
            type: "linear", grace: "8%",
            ticks: { callback: (value) => options.bytes(value), maxTicksLimit: narrow() ? 5 : 9 },
          }),
          y: axis("Seconds of training", { grace: "8%" }),
        },
        plugins: {
          legend: { display: false },
          tooltip: tooltip({
            label: (item) => `${item.raw.name}: ${options.bytes(item.raw.x)}, ${item.raw.y} s`,
          }),
        },
      },
    });
  }

  /**
   * The record by day, as a staircase. points: {x: days, y, name, published}, oldest first. others:
   * the same for those beside the stairs.
   */
  function staircase(points, others, options) {
    const end = { ...points[points.length - 1], x: options.end, last: true };
    const dots = (data) => ({
      data, label: "", named: !narrow() && points.length <= 12,
      pointStyle: data.map((point) => (point.published ? "rect" : "circle")),
      pointRadius: data.map((point) => (point.last ? 0 : 5)),
      pointHitRadius: 8, pointBorderWidth: 1.75, pointBorderColor: css("--accent"),
      pointBackgroundColor: data.map((p) => css(p.published ? "--paper" : "--accent")),
      borderColor: css("--accent"), borderWidth: 2, stepped: "before",
    });
    draw("history", {
      type: "line",
      data: { datasets: [dots([...points, end]), { ...dots(others), showLine: false }] },
      plugins: [names],
      options: {
        interaction: { mode: "nearest", intersect: false },
        layout: { padding: { right: 16, top: 8 } },
        scales: {
          x: axis("Date", {
            type: "linear", min: options.start, max: options.end,
            ticks: { callback: (value) => options.day(value), autoSkip: false },
            afterBuildTicks: (scale) => {
              const n = narrow() ? 2 : 6;
              const step = (options.end - options.start) / (n + 1);
              const days = Array.from({ length: n }, (_, i) => options.start + (i + 1) * step);
              scale.ticks = [...new Set(days.map(Math.round))].map((value) => ({ value }));
            },
          }),
          y: axis(options.title, options.log
            ? { type: "logarithmic", ticks: logTicks((x) => x.toLocaleString("en-US")) }
            : { grace: "10%" }),
        },
        plugins: {
          legend: { display: false },
          names: { corners: true },
          tooltip: tooltip({
            title: (items) => options.day(items[0].raw.x),
            label: (item) => `${item.raw.name}: ${options.format(item.raw.y)}`,
          }),
        },
      },
    });
  }

  /** Remove the chart of a canvas, and show or hide its place. */
  function show(id, visible) {
    if (!visible && live[id]) {
      live[id].destroy();
      delete live[id];
    }
    document.getElementById(id).parentElement.hidden = !visible;
  }

  /** A small picture of a line of the chart of curves, for the legend. */
  function swatch(slot) {
    const make = (name, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
      return node;
    };
    const svg = make("svg", { width: 44, height: 16, viewBox: "0 0 44 16", "aria-hidden": "true" });
    const stroke = { stroke: `var(--c${slot})`, "stroke-width": 2, fill: "none" };
    svg.append(make("line", { x1: 0, y1: 8, x2: 44, y2: 8, ...stroke,
      "stroke-dasharray": DASHES[slot].join(" ") || "none" }));
    const shapes = {
      circle: "M22 3.5a4.5 4.5 0 1 0 .01 0z", rect: "M18 4h8v8h-8z", triangle: "M22 3l5 9h-10z",
      rectRot: "M22 2.5l5.5 5.5-5.5 5.5-5.5-5.5z", crossRot: "M18 4l8 8M26 4l-8 8",
      star: "M22 2v12M16 8h12M18 4l8 8M26 4l-8 8",
    };
    const fill = FILLED[slot] ? `var(--c${slot})` : "var(--paper)";
    svg.append(make("path", { d: shapes[MARKERS[slot]], ...stroke, fill }));
    return svg;
  }

  return { curves, scatter, staircase, show, swatch };
})();
