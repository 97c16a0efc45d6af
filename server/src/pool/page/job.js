"use strict";

// --- the page of one job ---

// Characters of a log that are kept on the page.
const MOST_LOG = 400000;
// `offset`: where the log's next piece begins; it starts with the end of what is there.
let one = { id: null, offset: null, ended: false };

async function showOne(id) {
  if (one.id !== id) {
    one = { id, offset: null, ended: false, read: "" };
    ["one-name", "one-plan", "one-why", "one-phase", "one-told", "log", "log-told"].forEach((name) => put(at(name), ""));
    at("history").replaceChildren();
    showLosses(at("curve"), [], []);
    looked.delete("metrics");
  }
  const path = `/pool/v1/jobs/${id}`;
  const job = await asked(path);
  if (one.id !== id) return;
  showJob(job, await asked(`${path}/why`));
  showHistory(job);
  if (!one.ended) await readLog(path);
  // Of a job that stands still all is known once it has been read.
  if (isDue("metrics", job.phase === "running" ? 3000 : 15000)) showMetrics(job, await asked(`${path}/metrics`));
}

function showJob(job, why) {
  put(at("one-name"), `${job.id} · ${job.name}`);
  put(at("one-phase"), job.phase);
  at("one-phase").className = `dot ${job.phase}`;
  const plan = [`${job.project}, by ${job.user}`, `${job.class}, priority ${job.priority}`, wanted(job.request), `submitted ${day(job.submitted)}`];
  if (job.placement) plan.push(`on ${[...new Set(job.placement.map((place) => place.node))].join(", ")}`);
  if (job.ended) plan.push(`ended ${day(job.ended)}`);
  else if (job.expected_end) plan.push(`expected to end ${until(job.expected_end)}`);
  if (job.evictions) plan.push(`stopped for others ${several(job.evictions, "time")}`);
  if (job.lost_steps) plan.push(`${several(job.lost_steps, "step")} lost`);
  put(at("one-plan"), plan.join(" · "));
  const expected = why.expected && WAITING.includes(job.phase) ? ` It is expected to start ${until(why.expected)}.` : "";
  const change = ["running", "ended"].includes(why.rule) ? "" : `; what would change it: ${why.unblocks}`;
  put(at("one-why"), `${why.message}${change}.${expected}`);
  const is = (...phases) => phases.includes(job.phase);
  const isOver = is("done", "failed", "cancelled");
  at("cancel").hidden = !job.may.change || isOver;
  at("hold").hidden = !job.may.change || isOver || is("held");
  at("release").hidden = !job.may.change || !is("held");
}

const exitWords = (exit) => (exit === null ? "–" : typeof exit === "string" ? exit.replace("_", " ") : Object.entries(exit).map(([how, number]) => `${how} (${number})`)[0]);

function showHistory({ history }) {
  at("history-none").hidden = history.length > 0;
  at("history-scroll").hidden = history.length === 0;
  fill(at("history"), history.map((start) => [
    start.number, day(start.started), [...new Set(start.placement.map((place) => place.node ?? "?"))].join(", "),
    span(((start.ended ?? Date.now()) - start.started) / 1000), start.reason ?? "–", start.ended ? exitWords(start.exit) : "runs",
    start.ended ? start.lost_steps ?? "unknown" : "–",
  ]));
  history.forEach((_, i) => (at("history").rows[i].cells[4].className = "long"));
}

function showMetrics(job, lines) {
  const of = (key) => lines.filter((line) => Number.isFinite(line[key]) && line.step > 0).map((line) => [line.step, line[key]]);
  const [training, heldOut] = [of("loss"), of("eval_loss")];
  const done = Math.max(0, ...training.map((point) => point[0]));
  showLosses(at("curve"), training, heldOut, Math.max(job.spec.launch.steps ?? 0, done));
  at("no-curve").hidden = !at("curve").hidden;
}

async function readLog(path) {
  // At first the end of what is there, then what comes.
  const from = one.offset ?? -65536;
  const piece = await asked(`${path}/log?offset=${from}`);
  if (!path.endsWith(`/${one.id}`)) return;
  const log = at("log");
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  if (piece.text) {
    log.append(piece.text);
    if (log.textContent.length > MOST_LOG) log.textContent = log.textContent.slice(-MOST_LOG / 2);
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }
  [one.offset, one.ended] = [piece.offset, piece.ended];
  put(at("log-told"), piece.ended ? "It has ended; nothing more will come." : piece.offset ? "" : "It has said nothing yet.");
}

for (const what of ["cancel", "hold", "release"]) {
  at(what).addEventListener("click", async () => {
    put(at("one-told"), "");
    try {
      await asked(`/pool/v1/jobs/${one.id}/${what}`, { method: "POST" });
      await look();
    } catch (error) {
      put(at("one-told"), error.message);
    }
  });
}
