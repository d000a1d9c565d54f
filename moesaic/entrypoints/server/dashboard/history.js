// Counts of tokens by layer and expert, as they were at every look at the server, and what happened between two looks.

const FRAMES = 91; // three minutes of them

export class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.frames = []; // {time, counts: [Float64Array of one layer]}, counts since the server's start, oldest first
  }

  // `layers` as /v1/moe/experts gives them. A server that started anew begins another history.
  add(time, layers) {
    const counts = layers.map((layer) => Float64Array.from(layer.tokens));
    const last = this.frames.at(-1);
    const fits =
      last && counts.length === last.counts.length && counts.every((c, i) => total(c) >= total(last.counts[i]));
    if (last && !fits) this.clear();
    this.frames.push({ time, counts });
    if (this.frames.length > FRAMES) this.frames.shift();
  }

  // Tokens by layer and expert in the last `seconds`; with none in them, in the last stretch of that length with any.
  recent(seconds) {
    for (let end = this.frames.length - 1; end > 0; end--) {
      if (!moved(this.frames[end - 1], this.frames[end])) continue;
      let begin = end - 1;
      while (begin > 0 && this.frames[end].time - this.frames[begin].time < seconds) begin--;
      return {
        counts: difference(this.frames[begin], this.frames[end]),
        age: this.frames.at(-1).time - this.frames[end].time,
      };
    }
    return null;
  }

  // What one layer's experts got between each look and the one before, oldest first: [{time, counts}].
  steps(layer) {
    return this.frames.slice(1).map((frame, i) => ({
      time: frame.time,
      counts: frame.counts[layer].map((count, expert) => count - this.frames[i].counts[layer][expert]),
    }));
  }
}

export const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
const moved = (before, after) => after.counts.some((c, i) => total(c) > total(before.counts[i]));
const difference = (before, after) =>
  after.counts.map((c, i) => c.map((count, expert) => count - before.counts[i][expert]));

// The definitions of docs/statistics.md, for counts of which the server gives no figures.
export function figuresOf(counts) {
  const sum = total(counts);
  if (!sum) return { utilization: 0, imbalance: null, entropy: null, dead: [] };
  const used = counts.filter((count) => count > 0);
  const entropy = -total(used.map((count) => (count / sum) * Math.log(count / sum)));
  return {
    utilization: used.length / counts.length,
    imbalance: (Math.max(...counts) * counts.length) / sum,
    entropy: counts.length > 1 ? entropy / Math.log(counts.length) : 1,
    dead: [...counts.keys()].filter((expert) => counts[expert] === 0),
  };
}
