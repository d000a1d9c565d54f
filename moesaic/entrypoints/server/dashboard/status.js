// Reads /metrics every second while the page is seen, and shows the engine's figures.

const PERIOD = 1000;
const POINTS = 60; // of the history, one a period

// "name{labels} value" lines as a Map of sums over labels, and the labels of moesaic_info.
export function parse(text) {
  const values = new Map();
  let info = {};
  for (const line of text.split("\n")) {
    const match = /^(moesaic_\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    values.set(name, (values.get(name) ?? 0) + Number(value));
    if (name === "moesaic_info") {
      info = Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    }
  }
  return { values, info };
}

export function watch(at, onModel) {
  let before = null;
  const rates = [];

  async function look() {
    try {
      const [health, metrics] = await Promise.all([fetch("health"), fetch("metrics")]);
      if (!metrics.ok) throw new Error(metrics.statusText);
      const now = { time: performance.now(), ...parse(await metrics.text()) };
      show(now);
      say(health.ok ? "ready" : "engine stopped", health.ok ? "ok" : "bad");
    } catch {
      say("no answer", "bad");
      before = null;
    }
  }

  // An unchanged text is not set again: a screen reader would say it each time.
  function say(text, kind) {
    if (at("state").textContent !== text) at("state").textContent = text;
    at("state").className = `state ${kind}`;
  }

  function show(now) {
    const value = (name) => now.values.get(`moesaic_${name}`) ?? 0;
    if (at("model").dataset.name !== now.info.model) {
      at("model").dataset.name = now.info.model;
      at("model").textContent = `${now.info.model} · ${now.info.architecture} · ${now.info.dtype} on ${now.info.device}`;
      onModel(now.info.model);
    }
    at("running").textContent = value("num_requests_running");
    at("waiting").textContent = value("num_requests_waiting");
    at("finished").textContent = `${value("requests_finished_total")} finished`;
    const firsts = value("time_to_first_token_seconds_count");
    const mean = value("time_to_first_token_seconds_sum") / firsts;
    at("first-token").textContent = firsts ? `first token after ${mean.toFixed(2)} s` : "";
    const used = value("kv_blocks") ? value("kv_blocks_used") / value("kv_blocks") : 0;
    at("kv").textContent = `${(100 * used).toFixed(used < 0.1 ? 1 : 0)} %`;
    at("kv-meter").value = used;
    showRate(now, value("generation_tokens_total"));
  }

  function showRate(now, tokens) {
    if (before) {
      const rate = (1000 * (tokens - before.tokens)) / (now.time - before.time);
      rates.push(rate);
      if (rates.length > POINTS) rates.shift();
      at("rate").textContent = rate.toFixed(rate < 10 ? 1 : 0);
      const top = Math.max(1, ...rates);
      const x = (i) => (120 * (POINTS - rates.length + i)) / (POINTS - 1);
      const line = rates.map((r, i) => `${x(i).toFixed(1)},${(27 - (26 * r) / top).toFixed(1)}`);
      at("history").firstElementChild.setAttribute("points", line.join(" "));
    }
    before = { time: now.time, tokens };
  }

  async function loop() {
    if (!document.hidden) await look();
    setTimeout(loop, PERIOD);
  }
  loop();
}
