// Elements of the page, and numbers in words.
"use strict";

const $ = (id) => document.getElementById(id);
const byName = (name) => [...document.querySelectorAll(`input[name="${name}"]`)];

/** An element. children: elements and texts; a text never becomes HTML. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** A text that the eye sees shortened, and a screen reader reads whole. */
function named(text, most) {
  if (text.length <= most) return [text];
  return [make("span", { "aria-hidden": "true", title: text }, shortened(text, most)),
    make("span", { class: "hidden" }, text)];
}

// ---- Numbers in words ----

const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
const digits = (value) => (value === null ? "–"
  : value >= 1000 ? whole(value) : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0));
const maybe = (value, format) => (value === null ? "–" : format(value));
const pText = (p) => (p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(p < 0.1 ? 4 : 3));
const times = (ratio) => `${ratio.toFixed(2)}×`;

function bytes(value) {
  if (value === null) return "–";
  if (value === 0) return "0";
  const [unit, size] = value >= 1e9 ? ["GB", 1e9] : value >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}

function count(value) {
  const [unit, size] = value >= 1e9 ? ["B", 1e9] : value >= 1e6 ? ["M", 1e6] : value >= 1e4
    ? ["k", 1e3] : ["", 1];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

const plural = (n, one) => `${whole(n)} ${one}${n === 1 ? "" : "s"}`;
const day = (date) => Date.parse(`${date.slice(0, 10)}T00:00:00Z`) / 86400000;
const dateOf = (days) => new Date(Math.round(days) * 86400000).toISOString().slice(0, 10);
