"use strict";

// What all pages have in common.

const at = (id) => document.getElementById(id);

// --- what is asked of the server ---

at("key").value = sessionStorage.getItem("key") || "";
at("key-form").hidden = !at("key").value;
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value.trim());
  // What was shown belongs to another key.
  location.reload();
});

function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...options.headers };
  return fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server is not reached");
  });
}

// Why the server refused, in its words.
async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// What it answers, an object.
async function asked(path, options) {
  const response = await ask(path, options);
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

// --- what is shown ---

// Texts that stay as they are remain selected.
function put(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

const seconds = (time) => (time < 1 ? `${(time * 1000).toFixed(time < 0.01 ? 1 : 0)} ms` : `${time.toFixed(time < 10 ? 2 : 0)} s`);
const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");

function bytes(number) {
  let unit = 0;
  for (; number >= 1024 && unit < 4; unit++) number /= 1024;
  return `${number.toFixed(unit && number < 10 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function ago(time) {
  if (time === null) return "–";
  if (time < 60) return `${time} s ago`;
  return time < 3600 ? `${Math.floor(time / 60)} min ago` : `${Math.floor(time / 3600)} h ago`;
}

// Rows of texts, in the rows that are there.
function fill(body, rows) {
  rows.forEach((texts, i) => {
    const row = body.rows[i] || body.insertRow();
    texts.forEach((text, j) => put(row.cells[j] || row.insertCell(), text));
  });
  while (body.rows.length > rows.length) body.deleteRow(-1);
}

function tell(text, kind) {
  put(at("status"), text);
  at("status").className = `badge ${kind}`;
}

const several = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

function span(time) {
  if (time < 60) return `${Math.max(0, Math.round(time))} s`;
  return time < 3600 ? `${Math.round(time / 60)} min` : `${(time / 3600).toFixed(1)} h`;
}

// --- curves of losses ---

// Points of a curve; of more steps, each point is the mean of some.
const MOST_POINTS = 200;

// [step, loss] in the order of steps, at most as many as are seen apart.
function thinned(losses) {
  const all = [...losses].sort((a, b) => a[0] - b[0]);
  const each = Math.ceil(all.length / MOST_POINTS);
  const points = [];
  for (let i = 0; i < all.length; i += each) {
    const some = all.slice(i, i + each);
    points.push([some.at(-1)[0], some.reduce((sum, point) => sum + point[1], 0) / some.length]);
  }
  return points;
}

// Draws the losses of training and of held-out examples, by their steps, into a figure; it is hidden without any.
function showLosses(figure, training, heldOut, most) {
  const lines = { ".training": thinned(training), ".held-out": thinned(heldOut) };
  const losses = Object.values(lines).flat().map((point) => point[1]);
  figure.hidden = losses.length === 0;
  if (losses.length === 0) return;
  const [lowest, highest] = [Math.min(...losses), Math.max(...losses)];
  const steps = Math.max(most || 1, 2);
  const place = ([step, loss]) => {
    const [right, down] = [(step - 1) / (steps - 1), (highest - loss) / (highest - lowest || 1)];
    return `${(1 + 98 * right).toFixed(2)},${(2 + 36 * down).toFixed(2)}`;
  };
  for (const [name, points] of Object.entries(lines)) {
    const places = points.map(place);
    // A single point is a line without length, which has round ends.
    if (places.length === 1) places.push(places[0]);
    figure.querySelector(`polyline${name}`).setAttribute("points", places.join(" "));
  }
  const last = (name) => (lines[name].length ? lines[name].at(-1)[1].toFixed(3) : "–");
  const told = {
    ".training": `training loss ${last(".training")}`, ".held-out": `held-out loss ${last(".held-out")}`,
  };
  for (const [name, text] of Object.entries(told)) put(figure.querySelector(`.key${name}`), text);
  put(figure.querySelector(".highest"), highest.toFixed(3));
  put(figure.querySelector(".lowest"), lowest.toFixed(3));
  figure.querySelector("svg").setAttribute("aria-label", Object.values(told).join(", "));
}

// --- the state, every second: each page has its `lookNow` ---

let looking = null;

// One look at a time.
const look = () => (looking ??= lookNow().finally(() => (looking = null)));

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, 1000);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
// By then all scripts are there.
document.addEventListener("DOMContentLoaded", watch);
