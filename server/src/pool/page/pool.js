"use strict";

const [RESOURCES, SVG] = [["devices", "cpus", "memory"], "http://www.w3.org/2000/svg"];
// Rows that are shown of each table, and reasons that are asked for at once: others are a click away.
const [MOST_ROWS, MOST_REASONS, MOST_MACHINES, COLOURS] = [100, 20, 64, 8];
const WAITING = ["waiting", "promised", "held"];

// --- in words ---

const trimmed = (number, digits = 3) => count(Number(number.toFixed(digits)));

function amount(resource, number) {
  if (number === null) return "no bound";
  if (resource === "memory") return bytes(number);
  return resource === "devices" ? trimmed(number / 1000) : trimmed(number);
}

// A fair share, which is told in devices, cores and bytes, as an amount.
const shareOf = (queue, resource) => queue.share[resource] * (resource === "devices" ? 1000 : 1);

// What a job asks for, such as `2 x 4 devices, 8–16 cpus, 64 GiB`.
function wanted({ members, devices, cpus, memory }) {
  const range = (resource, { min, max }) =>
    min === max ? amount(resource, min) : `${amount(resource, min)}–${amount(resource, max)}`;
  const parts = [];
  if (devices.max) parts.push(`${range("devices", devices)} device${devices.max === 1000 ? "" : "s"}`);
  parts.push(`${range("cpus", cpus)} cpu${cpus.max === 1 ? "" : "s"}`);
  if (memory) parts.push(bytes(memory));
  return (members > 1 ? `${members} × ` : "") + parts.join(", ");
}

const day = (time) => new Date(time).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "short" });
const since = (time) => span((Date.now() - time) / 1000);
const until = (time) => (time === null || time === undefined ? "–" : time > Date.now() ? `in ${span((time - Date.now()) / 1000)}` : "now");

// A link in a cell, which stays as it is while its text does.
function link(cell, href) {
  const there = cell.firstElementChild;
  if (there && there.getAttribute("href") === href) return;
  const anchor = document.createElement("a");
  anchor.href = href;
  anchor.textContent = cell.textContent;
  cell.replaceChildren(anchor);
}

function nameCell(cell, text) {
  cell.className = "name";
  if (cell.title !== text) cell.title = text;
}

// --- how the pool stands ---

let state = null;
let chosen = "";
const colours = new Map();

// Each project keeps its colour as long as the page is open.
function colour(project) {
  if (!colours.has(project)) colours.set(project, colours.size % COLOURS);
  return `c${colours.get(project)}`;
}

function showNow() {
  const tops = state.queues.filter((queue) => queue.department === null);
  const sum = (of) => tops.reduce((all, queue) => all + of(queue), 0);
  for (const resource of RESOURCES) {
    const [held, all] = [sum((queue) => queue.held[resource]), state.capacity[resource]];
    put(at(resource), amount(resource, held));
    put(at(`${resource}-all`), `of ${amount(resource, all)}`);
    at(`${resource}-meter`).value = all ? held / all : 0;
  }
  put(at("running"), count(sum((queue) => queue.running)));
  put(at("waiting"), `${count(sum((queue) => queue.waiting))} waiting`);
  const up = state.nodes.filter((node) => node.up).length;
  put(at("machines-up"), count(up));
  put(at("machines-down"), up < state.nodes.length ? `${state.nodes.length - up} not there` : "");
}

function shape(kind, attributes, className) {
  const element = document.createElementNS(SVG, kind);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (className) element.setAttribute("class", className);
  return element;
}

// What is held, with marks where quota and fair share end; all of the pool is the whole width.
function bar(cell, queue, resource) {
  const all = state.capacity[resource] || 1;
  const part = (number) => Math.min(100, (100 * number) / all);
  const [held, share, quota] = [queue.held[resource], shareOf(queue, resource), queue.quota[resource]];
  let svg = cell.firstElementChild;
  if (!svg) {
    svg = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img" }, "bar");
    svg.append(
      shape("rect", { x: 0, y: 2, height: 6, width: 100 }, "ground"), shape("rect", { x: 0, y: 2, height: 6 }, "held"),
      shape("rect", { y: 2, height: 6 }, "borrowed"), shape("line", { y1: 0, y2: 10 }, "quota"), shape("line", { y1: 0, y2: 10 }, "share"),
    );
    cell.append(svg);
  }
  const [, own, borrowed, quotaMark, shareMark] = svg.children;
  const within = quota === null ? held : Math.min(held, quota);
  own.setAttribute("width", part(within));
  borrowed.setAttribute("x", part(within));
  borrowed.setAttribute("width", part(held) - part(within));
  const mark = (line, value) => {
    line.setAttribute("x1", part(value));
    line.setAttribute("x2", part(value));
  };
  mark(quotaMark, quota ?? all);
  mark(shareMark, share);
  svg.setAttribute("aria-label", `${amount(resource, held)} held, quota ${amount(resource, quota)}, fair share ${amount(resource, share)}`);
}

function showProjects() {
  const resource = at("resource").value;
  const projects = state.queues.filter((queue) => queue.kind === "project");
  const shown = projects.slice(0, MOST_ROWS);
  const inHours = state.capacity.devices ? "devices" : "cpus";
  put(at("hours-head"), inHours === "devices" ? "device-hours" : "cpu-hours");
  const rows = shown.map((queue) => [
    queue.name, queue.department ?? "–", amount(resource, queue.held[resource]), "", amount(resource, queue.quota[resource]),
    amount(resource, shareOf(queue, resource)), amount(resource, queue.limit[resource]), count(queue.running), count(queue.waiting),
    trimmed(queue.hours[inHours], 2),
  ]);
  fill(at("projects"), rows);
  shown.forEach((queue, i) => {
    const { cells } = at("projects").rows[i];
    cells[0].className = `swatch ${colour(queue.name)}`;
    bar(cells[3], queue, resource);
  });
  put(at("projects-more"), projects.length > shown.length ? `and ${several(projects.length - shown.length, "project")} more` : "");
  const words = { devices: (n) => several(Number(amount("devices", n)), "device"), cpus: (n) => several(n, "cpu"), memory: bytes };
  const loans = state.lending.slice(0, MOST_ROWS).map(
    (loan) => `${loan.to} borrows ${words[loan.resource](loan.amount)}${loan.resource === "memory" ? " of memory" : ""} of ${loan.from}`,
  );
  while (at("lending").children.length > loans.length) at("lending").lastElementChild.remove();
  loans.forEach((text, i) => put(at("lending").children[i] || at("lending").appendChild(document.createElement("li")), text));
  const choices = ["", ...shown.map((queue) => queue.name)];
  if ([...at("whose").options].map((option) => option.value).join("\n") !== choices.join("\n")) {
    at("whose").replaceChildren(...choices.map((one) => new Option(one || "all projects", one)));
    at("whose").value = choices.includes(chosen) ? chosen : "";
  }
}

// --- machines ---

function showMachines() {
  const shown = state.nodes.slice(0, MOST_MACHINES);
  const there = at("machines").children;
  while (there.length > shown.length) at("machines").lastElementChild.remove();
  shown.forEach((node, i) => {
    const text = JSON.stringify(node);
    const before = there[i];
    if (before && before.shows === text) return;
    const card = machine(node);
    card.shows = text;
    if (before) before.replaceWith(card);
    else at("machines").append(card);
  });
  const more = state.nodes.length - shown.length;
  put(at("machines-more"), more > 0 ? `and ${several(more, "machine")} more` : "");
}

function jobLink(id) {
  const anchor = document.createElement("a");
  anchor.href = `#job-${id}`;
  anchor.textContent = id;
  return anchor;
}

function piece(tag, className, ...inside) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
}

function machine(node) {
  const used = (resource) => node[resource] - node.free[resource];
  const head = piece("div", "job-head", piece("b", "", node.name), piece("span", node.up ? "good" : "bad", node.up ? "there" : "not there"));
  const words = [`${used("cpus")} of ${several(node.cpus, "cpu")}`, `${bytes(used("memory"))} of ${bytes(node.memory)}`];
  if (node.devices) words.unshift(`${several(node.devices, "device")} of ${bytes(node.device_memory)}`);
  const card = piece("article", "job", head, piece("div", "quiet job-plan", words.join(" · ")));
  if (node.devices) {
    const devices = piece("div", "device-row");
    for (let device = 0; device < node.devices; device++) {
      const on = node.places.filter((place) => place.devices.includes(device));
      const cell = piece("div", on.length ? `device ${colour(on[0].project)}` : "device free", piece("small", "", `${device}`));
      on.forEach((place) => cell.append(" ", jobLink(place.job)));
      cell.title = on.length ? on.map((place) => `job ${place.job} of ${place.project}, ${place.part / 10} %`).join("; ") : "free";
      devices.append(cell);
    }
    card.append(devices);
  }
  const without = node.places.filter((place) => !place.devices.length);
  if (without.length) {
    const list = piece("div", "device-row");
    for (const place of without.slice(0, MOST_ROWS)) {
      list.append(piece("div", `device ${colour(place.project)}`, jobLink(place.job), ` ${several(place.cpus, "cpu")}`));
    }
    card.append(list);
  }
  return card;
}

// --- over time ---

function stacked(samples, resource, projects) {
  const sums = samples.map(() => 0);
  return projects.map((project) => {
    const lower = [...sums];
    samples.forEach((sample, i) => (sums[i] += sample.queues.find((queue) => queue.name === project && queue.kind === "project")?.held[resource] || 0));
    return { project, lower, upper: [...sums] };
  });
}

function showTime(samples) {
  const [resource, whose, figure] = [at("resource").value, at("whose").value, at("time")];
  const svg = figure.querySelector("svg");
  const end = Date.now();
  // A pool that is younger than that fills the whole width.
  const begin = Math.max(end - Number(at("span").value), Math.min(samples[0].at, end - 60000));
  const right = (sample) => (100 * (sample.at - begin)) / (end - begin);
  const projects = state.queues.filter((queue) => queue.kind === "project").slice(0, MOST_ROWS);
  const one = projects.find((project) => project.name === whose);
  const of = (sample) => sample.queues.find((queue) => queue.kind === "project" && queue.name === whose);
  const own = one ? samples.filter(of) : samples;
  const tops = one
    ? own.flatMap((sample) => [of(sample).held[resource], shareOf(of(sample), resource)]).concat(one.quota[resource] ?? 0)
    : samples.map((sample) => sample.capacity[resource]).concat(state.capacity[resource]);
  const highest = Math.max(...tops, 1);
  const down = (value) => 39 - (37 * value) / highest;
  const point = (sample, value) => `${right(sample).toFixed(2)},${down(value).toFixed(2)}`;
  const line = (value, className) => shape("polyline", { points: own.map((sample) => point(sample, value(sample))).join(" ") }, className);
  const key = (className, text) => piece("span", className, text);
  if (one) {
    const quota = one.quota[resource];
    svg.replaceChildren(
      line((sample) => of(sample).held[resource], "training"), line((sample) => shareOf(of(sample), resource), "held-out"),
      ...(quota === null ? [] : [shape("line", { x1: 0, x2: 100, y1: down(quota), y2: down(quota) }, "quota")]),
    );
    figure.querySelector("figcaption").replaceChildren(
      key("key training", `held ${amount(resource, one.held[resource])}`), key("key held-out", `fair share ${amount(resource, shareOf(one, resource))}`),
      key("key dashed", `quota ${amount(resource, quota)}`),
    );
  } else {
    const areas = stacked(samples, resource, projects.map((project) => project.name)).filter((area) => area.upper.some((sum, i) => sum > area.lower[i]));
    svg.replaceChildren(
      ...areas.map(({ project, lower, upper }) => {
        const there = samples.map((sample, i) => point(sample, upper[i]));
        const back = samples.map((sample, i) => point(sample, lower[i])).reverse();
        return shape("polygon", { points: [...there, ...back].join(" ") }, `area ${colour(project)}`);
      }),
      line((sample) => sample.capacity[resource], "quota"),
    );
    const keys = areas.slice(0, 24).map(({ project }) => key(`swatch ${colour(project)}`, project));
    figure.querySelector("figcaption").replaceChildren(...keys, key("key dashed", "all there is"));
  }
  put(figure.querySelector(".highest"), amount(resource, highest));
  svg.setAttribute("aria-label", `${resource} ${one ? `of ${whose}` : "held by projects"} in the last ${at("span").selectedOptions[0].text}`);
}

// --- jobs ---

function cells(body, jobs, texts) {
  fill(body, jobs.map(texts));
  jobs.forEach((job, i) => {
    const row = body.rows[i];
    link(row.cells[0], `#job-${job.id}`);
    nameCell(row.cells[1], job.name);
  });
}

const reasons = new Map();
const opened = new Set();

async function askWhy(id) {
  try {
    reasons.set(id, (await asked(`/pool/v1/jobs/${id}/why`)).message);
  } catch (error) {
    reasons.set(id, error.message);
  }
}

async function showQueue(jobs) {
  const waiting = jobs.filter((job) => WAITING.includes(job.phase)).reverse();
  at("queue-none").hidden = waiting.length > 0;
  at("queue-scroll").hidden = waiting.length === 0;
  const ids = new Set(waiting.map((job) => job.id));
  for (const id of reasons.keys()) if (!ids.has(id)) reasons.delete(id);
  waiting.slice(0, MOST_REASONS).forEach((job) => opened.add(job.id));
  const show = () => {
    cells(at("queue"), waiting, (job) => [
      job.id, job.name, job.project, job.user, wanted(job.request), since(job.submitted), until(job.expected_start),
      reasons.get(job.id) ?? (opened.has(job.id) ? "…" : "why?"),
    ]);
    waiting.forEach((job, i) => {
      const cell = at("queue").rows[i].cells[7];
      cell.className = "long";
      if (opened.has(job.id) || cell.firstElementChild) return;
      const button = piece("button", "", "why?");
      button.type = "button";
      button.addEventListener("click", async () => {
        opened.add(job.id);
        await askWhy(job.id);
        show();
      });
      cell.replaceChildren(button);
    });
  };
  show();
  // One after the other, and not all the time: a reason takes the pool some time to find.
  const asks = waiting.filter((job) => opened.has(job.id) && isDue(`why ${job.id}`, 10000));
  for (const job of asks.slice(0, 2 * MOST_REASONS)) await askWhy(job.id);
  if (asks.length) show();
}

function showList(jobs) {
  at("jobs-none").hidden = jobs.length > 0;
  at("list-scroll").hidden = jobs.length === 0;
  cells(at("list"), jobs, (job) => [
    job.id, job.name, job.project, job.user, job.phase, wanted(job.request), since(job.submitted),
    job.ended ? day(job.ended) : until(job.expected_end), count(job.attempts), job.evictions ? several(job.evictions, "time") : "–",
  ]);
  jobs.forEach((job, i) => (at("list").rows[i].cells[4].className = `dot ${job.phase}`));
}

function showEvictions(evictions) {
  at("evictions-none").hidden = evictions.length > 0;
  at("evictions-scroll").hidden = evictions.length === 0;
  fill(at("evictions"), evictions.map((one) => [
    day(one.at), one.name === null ? `${one.job}` : `${one.job} ${one.name}`, one.project,
    one.by === null ? "–" : `${one.by}${one.by_project === null ? "" : ` of ${one.by_project}`}`, one.reason, one.lost_steps ?? "unknown",
  ]));
  evictions.forEach((one, i) => {
    const row = at("evictions").rows[i];
    nameCell(row.cells[1], one.name ?? "");
    row.cells[4].className = "long";
  });
}

// --- now and then ---

const looked = new Map();

// Whether something was looked at so long ago that it should be again.
function isDue(what, wait) {
  const due = performance.now() - (looked.get(what) ?? -Infinity) >= wait;
  if (due) looked.set(what, performance.now());
  return due;
}

let samples = [];

async function lookNow() {
  if (!sessionStorage.getItem("key")) return tell("a token of this pool is needed", "bad");
  const id = /^#job-([0-9]+)$/.exec(location.hash)?.[1];
  try {
    const me = await ask("/pool/v1/me", { signal: AbortSignal.timeout(10000) });
    if (me.status === 401) at("key-form").hidden = false;
    if (!me.ok) return tell(await reason(me), "bad");
    const { name: user, admin } = await me.json();
    put(at("who"), admin ? `${user}, admin` : user);
    at("pool").hidden = id !== undefined;
    at("one").hidden = id === undefined;
    if (id) await showOne(id);
    else await showPool();
    tell("ready", "good");
  } catch (error) {
    tell(error.message, "bad");
  }
}

async function showPool() {
  const first = state === null;
  state = await asked("/pool/v1/status");
  if (first) at("resource").value = state.capacity.devices ? "devices" : "cpus";
  showNow();
  showProjects();
  showMachines();
  if (isDue("samples", 10000)) samples = (await asked(`/pool/v1/samples?since=${Date.now() - Number(at("span").value)}`)).samples;
  showTime([...samples, state]);
  if (isDue("jobs", 2000)) {
    const { jobs } = await asked(`/pool/v1/jobs?limit=${MOST_ROWS}&all=${at("ended").checked}`);
    showList(jobs);
    await showQueue(jobs);
  }
  if (isDue("evictions", 5000)) showEvictions((await asked("/pool/v1/evictions?limit=50")).evictions);
}

// What is chosen anew is shown at once.
function again(...what) {
  what.forEach((one) => looked.delete(one));
  look();
}
at("resource").addEventListener("change", () => again());
at("whose").addEventListener("change", () => {
  chosen = at("whose").value;
  again();
});
at("span").addEventListener("change", () => again("samples"));
at("ended").addEventListener("change", () => again("jobs"));
addEventListener("hashchange", () => {
  scrollTo(0, 0);
  again("jobs");
});
// Whoever comes without a token is asked for it.
at("key-form").hidden = false;
