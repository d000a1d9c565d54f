// Figures of the engine out of /v1/moe/status, by names of this page; null where one is not known.

import { percent } from "./format.js";

// `before` is the last reading, from which rates are taken; null for the first.
export function read(status, before) {
  const { requests, tokens, prefix_cache: cache, latency, steps, kv, experts } = status;
  const time = performance.now() / 1000;
  const rate = (name) => (before ? Math.max(0, tokens[name] - before[name]) / (time - before.time) : null);
  return {
    time,
    model: status.model,
    description: `${status.model} · ${status.description}`,
    running: requests.running,
    waiting: requests.waiting,
    preempted: requests.preemptions,
    finished: Object.values(requests.finished).reduce((sum, n) => sum + n, 0),
    generated: tokens.generated,
    prompt: tokens.prompt,
    generatedRate: rate("generated"),
    promptRate: rate("prompt"),
    ...percentiles("first", latency.time_to_first_token),
    ...percentiles("between", latency.inter_token_latency),
    routingShare: steps.seconds ? steps.routing_seconds / steps.seconds : null,
    kvShare: kv.usage,
    kvBytes: kv.bytes,
    hitShare: cache.queries ? cache.hits / cache.queries : null,
    expertBytes: experts.bytes || null,
    expertNote: experts.fragmentation === null ? "" : `${percent(experts.fragmentation)} of it unused`,
    efficiency: experts.compute_efficiency,
  };
}

function percentiles(name, of) {
  return Object.fromEntries([50, 95, 99].map((p) => [`${name}${p}`, of?.[`p${p}`] ?? null]));
}
