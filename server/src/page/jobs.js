"use strict";

// --- fine-tuning: a card for each job, which lives as long as the job is listed ---

const cards = new Map();
const ENDED = ["succeeded", "failed", "cancelled"];
let listed = 20;
let base = "";

async function showTuning(state) {
  base = state.model;
  at("no-jobs").hidden = state.has_jobs;
  at("tuning").hidden = !state.has_jobs;
  if (!state.has_jobs) return;
  const jobs = await asked(`/v1/fine_tuning/jobs?limit=${listed}`);
  at("jobs-none").hidden = jobs.data.length > 0;
  at("earlier").hidden = !jobs.has_more || listed === 100;
  const there = new Set(jobs.data.map((job) => job.id));
  for (const [id, card] of cards) {
    if (there.has(id)) continue;
    card.element.remove();
    cards.delete(id);
  }
  jobs.data.forEach((job, i) => {
    if (!cards.has(job.id)) cards.set(job.id, makeCard(job.id));
    const { element } = cards.get(job.id);
    // What stays in its place keeps the focus.
    if (at("jobs").children[i] !== element) at("jobs").insertBefore(element, at("jobs").children[i] || null);
  });
  for (const job of jobs.data) await showJob(cards.get(job.id), job);
}

at("earlier").addEventListener("click", () => {
  listed = 100;
  look();
});

function makeCard(id) {
  const element = at("job").content.firstElementChild.cloneNode(true);
  const find = (name) => element.querySelector(name);
  // `seen`: the number of the newest event that was read; the maps: losses by their steps.
  const card = { id, element, find, job: null, seen: 0, read: "", training: new Map(), heldOut: new Map() };
  const turn = () => change(card, card.job.status === "paused" ? "resume" : "pause");
  find(".job-pause").addEventListener("click", turn);
  find(".job-cancel").addEventListener("click", () => change(card, "cancel"));
  find(".job-compare").addEventListener("click", () => {
    sides[0].choice.value = base;
    sides[1].choice.value = card.job.fine_tuned_model;
    at("question").focus();
  });
  return card;
}

async function change(card, action) {
  put(card.find(".told"), "");
  try {
    showWords(card, await asked(`/v1/fine_tuning/jobs/${card.id}/${action}`, { method: "POST" }));
  } catch (error) {
    put(card.find(".told"), error.message);
  }
}

async function showJob(card, job) {
  const status = job.status;
  showWords(card, job);
  // Of a job that stands still all is known once it has been read.
  if (card.read === status && status !== "running") return;
  await readEvents(card);
  card.read = status;
  showWords(card, job);
  showLosses(card.find("figure"), card.training, card.heldOut, card.job.steps);
}

// The events since the last look: they come newest first.
async function readEvents(card) {
  const number = (id) => Number(id.split("-")[1]);
  const events = [];
  for (let after = "", more = true; more; after = `&after=${events.at(-1).id}`) {
    const page = await asked(`/v1/fine_tuning/jobs/${card.id}/events?limit=100${after}`);
    events.push(...page.data.filter((event) => number(event.id) > card.seen));
    more = page.has_more && number(page.last_id) > card.seen;
  }
  // A step that was done again counts as it was done last.
  for (const { id, data } of events.reverse()) {
    card.seen = number(id);
    if (data.train_loss !== undefined) card.training.set(data.step, data.train_loss);
    if (data.valid_loss !== undefined) card.heldOut.set(data.step, data.valid_loss);
  }
}

function showWords(card, job) {
  card.job = job;
  const { status, hyperparameters: chosen, steps, error } = job;
  const find = card.find;
  put(find(".job-name"), job.fine_tuned_model || job.user_provided_suffix || job.id);
  put(find(".job-status"), status.replace("_", " "));
  find(".job-status").className = `job-status dot ${status}`;
  const plan = [new Date(job.created_at * 1000).toLocaleString("en-GB")];
  if (steps) plan.push(several(chosen.n_epochs, "epoch"), `batches of ${chosen.batch_size}`);
  if (job.settings["adapter.r"]) plan.push(`rank ${job.settings["adapter.r"]}`);
  if (job.learning_rate) plan.push(`learning rate ${job.learning_rate.toPrecision(2)}`);
  put(find(".job-plan"), plan.join(" · "));
  const done = status === "succeeded" ? steps : Math.max(0, ...card.training.keys());
  find("progress").value = steps ? done / steps : 0;
  const progress = steps ? [`step ${count(done)} of ${count(steps)}`] : ["its files are read"];
  if (job.estimated_finish) progress.push(`ends in about ${span(job.estimated_finish - Date.now() / 1000)}`);
  if (job.trained_tokens) progress.push(`${several(job.trained_tokens, "token")} trained on`);
  if (status === "succeeded") progress.push(`took ${span(job.finished_at - job.started_at)}`);
  put(find(".job-progress"), error ? error.message : progress.join(" · "));
  find(".job-progress").classList.toggle("bad", error !== null);
  put(find(".job-pause"), status === "paused" ? "Resume" : "Pause");
  find(".job-pause").disabled = find(".job-cancel").disabled = ENDED.includes(status);
  const choices = [...sides[1].choice.options];
  find(".job-compare").disabled = !choices.some((choice) => choice.value === job.fine_tuned_model);
}

// --- a new job ---

function tellOfJob(text, kind = "quiet") {
  put(at("job-told"), text);
  at("job-told").className = `told ${kind}`;
}

async function upload(input) {
  if (!input.files.length) return undefined;
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", input.files[0]);
  tellOfJob(`${input.files[0].name} is sent`);
  return (await asked("/v1/files", { method: "POST", body: form })).id;
}

async function begin() {
  const sent = [];
  const number = (id) => (at(id).value ? Number(at(id).value) : undefined);
  try {
    for (const id of ["training", "held-out"]) sent.push(await upload(at(id)));
    const rank = number("rank");
    const job = {
      model: base, training_file: sent[0], validation_file: sent[1], suffix: at("suffix").value || undefined,
      hyperparameters: { n_epochs: number("epochs"), learning_rate_multiplier: number("rate") },
      settings: rank === undefined ? undefined : { "adapter.r": rank },
    };
    const headers = { "Content-Type": "application/json" };
    await asked("/v1/fine_tuning/jobs", { method: "POST", headers, body: JSON.stringify(job) });
    tellOfJob("the job has its place below");
    at("new-job").reset();
    await look();
  } catch (error) {
    tellOfJob(error.message, "bad");
    // No job needs what was sent for this one.
    for (const id of sent) if (id) await ask(`/v1/files/${id}`, { method: "DELETE" });
  }
}

at("new-job").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("start").disabled = true;
  await begin().catch((error) => tellOfJob(error.message, "bad"));
  at("start").disabled = false;
});
