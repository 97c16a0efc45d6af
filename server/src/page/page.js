"use strict";

const sides = [...document.querySelectorAll(".side")].map((side) => ({
  choice: side.querySelector("select"),
  talk: side.querySelector(".talk"),
  told: side.querySelector(".told"),
  messages: [],
}));

// --- the state, every second ---

let last = null;
const speeds = [];

function showSpeed(written) {
  const now = performance.now();
  // After a restart the count begins anew.
  if (last && written >= last.written) {
    speeds.push((written - last.written) / ((now - last.now) / 1000));
    if (speeds.length > 60) speeds.shift();
    at("speed").textContent = speeds.at(-1).toFixed(speeds.at(-1) < 10 ? 1 : 0);
    const most = Math.max(...speeds, 1);
    const points = speeds.map((speed, i) => `${60 - speeds.length + i},${15 - (14 * speed) / most}`);
    at("speeds").firstElementChild.setAttribute("points", points.join(" "));
  }
  last = { now, written };
}

function showTimes(id, times) {
  at(id).textContent = times ? seconds(times[0]) : "–";
  at(`${id}-95`).textContent = times ? `95 % within ${seconds(times[1])}` : "";
}

function showAdapters(state) {
  const or = (value, show = String) => (value === null ? "–" : show(value));
  const base = [
    state.model, "base", "–", "–", "–", "–", count(state.base.prompt_tokens), count(state.base.new_tokens), "–",
  ];
  const rows = state.adapters.map((adapter) => [
    adapter.name, adapter.pinned ? `${adapter.state}, pinned` : adapter.state, or(adapter.generation), or(adapter.rank),
    or(adapter.bytes, bytes), count(adapter.requests), count(adapter.traffic.prompt_tokens),
    count(adapter.traffic.new_tokens), ago(adapter.idle_seconds),
  ]);
  fill(at("adapters"), [base, ...rows]);
  state.adapters.forEach((adapter, i) => (at("adapters").rows[i + 1].cells[1].className = `dot ${adapter.state}`));
}

function showChoices(state) {
  const names = [state.model, ...state.adapters.map((adapter) => adapter.name)];
  sides.forEach((side, i) => {
    const there = [...side.choice.options].map((option) => option.value);
    if (there.join("\n") === names.join("\n")) return;
    const chosen = side.choice.value || names[Math.min(i, names.length - 1)];
    side.choice.replaceChildren(...names.map((name) => new Option(name, name)));
    side.choice.value = names.includes(chosen) ? chosen : names[0];
    if (!names.includes(chosen)) tellOf(side, `${chosen} is not served any more; ${names[0]} answers from now on`, "bad");
  });
}

function show(state) {
  at("model").textContent = `${state.model} · ${count(state.context)} tokens of context`;
  at("running").textContent = state.load.running;
  at("waiting").textContent = state.load.waiting ? `${state.load.waiting} waiting` : "";
  const used = state.load.pages ? state.load.used_pages / state.load.pages : 0;
  at("cache").textContent = `${Math.round(used * 100)} %`;
  at("cache-meter").value = used;
  // Once: from then on it is the user's.
  if (!last) at("tokens").value = Math.min(256, Math.floor(state.context / 2));
  showTimes("first", state.seconds_to_first_token);
  showTimes("between", state.seconds_between_tokens);
  showTimes("whole", state.seconds_of_request);
  showSpeed(state.adapters.reduce((sum, adapter) => sum + adapter.traffic.new_tokens, state.base.new_tokens));
  showAdapters(state);
  showChoices(state);
}

async function lookNow() {
  try {
    const response = await ask("/api/state", { signal: AbortSignal.timeout(10000) });
    if (response.status === 401) at("key-form").hidden = false;
    if (!response.ok) return tell(await reason(response), "bad");
    const state = await response.json();
    show(state);
    await showTuning(state);
    tell(state.draining ? "about to end" : "ready", state.draining ? "bad" : "good");
  } catch (error) {
    tell(error.message, "bad");
  }
}

// --- the conversation with both ---

let asking = null;

function say(side, role, text) {
  const said = document.createElement("p");
  said.className = role;
  said.textContent = text;
  side.talk.append(said);
  side.talk.scrollTop = side.talk.scrollHeight;
  return said;
}

function tellOf(side, text, kind = "quiet") {
  put(side.told, text);
  side.told.className = `told ${kind}`;
}

// The objects of a stream of events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const data = held.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer(side, question, signal) {
  const messages = [...side.messages, { role: "user", content: question }];
  say(side, "user", question);
  const said = say(side, "assistant", "…");
  tellOf(side, "");
  const begun = performance.now();
  let [text, first, usage] = ["", null, null];
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model: side.choice.value, messages, stream: true, stream_options: { include_usage: true },
        temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
      }),
    });
    if (!response.ok) throw new Error(await reason(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices[0]?.delta.content;
      if (piece) {
        first ??= performance.now();
        text += piece;
        said.textContent = text;
        side.talk.scrollTop = side.talk.scrollHeight;
      }
      usage = event.usage ?? usage;
    }
    said.textContent = text || "(nothing)";
    const time = (performance.now() - begun) / 1000;
    const written = usage ? `${usage.completion_tokens} tokens, ` : "";
    const waited = ((first ?? performance.now()) - begun) / 1000;
    tellOf(side, `${written}first after ${seconds(waited)}, all in ${seconds(time)}`);
  } catch (error) {
    said.textContent = text || "–";
    tellOf(side, signal.aborted ? "stopped" : error.message, signal.aborted ? "quiet" : "bad");
  }
  if (text) side.messages = [...messages, { role: "assistant", content: text }];
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || asking) return;
  asking = new AbortController();
  at("question").value = "";
  at("send").disabled = true;
  at("stop").disabled = false;
  await Promise.all(sides.map((side) => answer(side, question, asking.signal)));
  asking = null;
  at("send").disabled = false;
  at("stop").disabled = true;
});

at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});

at("stop").addEventListener("click", () => asking?.abort());

at("anew").addEventListener("click", () => {
  asking?.abort();
  for (const side of sides) {
    side.messages = [];
    side.talk.replaceChildren();
    tellOf(side, "");
  }
});
