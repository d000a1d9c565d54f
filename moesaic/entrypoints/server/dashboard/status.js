// The cards at the top: requests, speed, times and memory, now and over the last minutes.

import { apiKey, get } from "./api.js";
import { Chart, roundUpBinary } from "./chart.js";
import { at, every, say } from "./dom.js";
import { read } from "./figures.js";
import { bytes, count, number, percent, seconds } from "./format.js";

const PERIOD = 1000; // ms between looks
const SPAN = 180; // seconds that the charts show

const together = (...parts) => parts.filter(Boolean).join(" · ");

// Each card: the chart's lines as a figure of figures.js, its format, and what stands above the chart.
const CARDS = {
  requests: {
    lines: { running: "running", waiting: "waiting" },
    format: number,
    big: (f) => `${number(f.running)} running`,
    small: (f) => `${number(f.waiting)} waiting · ${count(f.preempted)} preempted · ${count(f.finished)} finished`,
  },
  throughput: {
    lines: { generated: "generatedRate", prompt: "promptRate" },
    format: (x) => (x === null ? "–" : `${count(x)}/s`),
    big: (f) => `${count(f.generatedRate)} tokens/s`,
    small: (f) => `${count(f.generated)} generated · ${count(f.prompt)} of prompts`,
  },
  first: {
    lines: { p50: "first50", p95: "first95", p99: "first99" },
    format: seconds,
    big: (f) => seconds(f.first50),
    small: () => "median of the last minute",
  },
  between: {
    lines: { p50: "between50", p95: "between95", p99: "between99" },
    format: seconds,
    big: (f) => seconds(f.between50),
    small: (f) =>
      together("median of the last minute", f.routingShare > 0 && `routing ${percent(f.routingShare)} of steps`),
  },
  kv: {
    lines: { used: "kvShare" },
    format: percent,
    top: 1,
    big: (f) => percent(f.kvShare),
    small: (f) => together(`of ${bytes(f.kvBytes)}`, f.hitShare !== null && `${percent(f.hitShare)} of prompts cached`),
  },
  memory: {
    lines: { used: "expertBytes" },
    format: bytes,
    round: roundUpBinary,
    big: (f) => bytes(f.expertBytes),
    small: (f) => together(f.expertNote, f.efficiency !== null && `${percent(f.efficiency)} of computed rows used`),
  },
};

export class Status {
  constructor(onModel) {
    this.onModel = onModel;
    this.points = [];
    this.before = null;
    this.charts = Object.entries(CARDS).map(([id, card]) => {
      const figure = at(id).querySelector("figure");
      return [
        card,
        at(id),
        new Chart(figure, Object.keys(card.lines), card.format, { top: card.top, round: card.round, longest: SPAN }),
      ];
    });
    this.look = every(PERIOD, () => this.read());
  }

  async read() {
    try {
      const now = read(await get("v1/moe/status"), this.before);
      this.before = now;
      this.show(now);
      this.say("ready", "ok");
    } catch (error) {
      this.before = null;
      if (error.status === 401) this.say(apiKey() ? "wrong API key" : "API key needed", "bad");
      else if (error.status === 503) this.say("engine stopped", "bad");
      else this.say(error.status ? error.message : "no answer", "bad");
    }
  }

  say(text, kind) {
    say(at("state"), text);
    at("state").className = `state ${kind}`;
  }

  show(now) {
    if (at("model").dataset.name !== now.model) {
      at("model").dataset.name = now.model;
      say(at("model"), now.description);
      this.onModel(now.model);
    }
    this.points.push(now);
    while (now.time - this.points[0].time > SPAN) this.points.shift();
    for (const [card, node, chart] of this.charts) {
      say(node.querySelector(".big"), card.big(now));
      say(node.querySelector(".small"), card.small(now));
      chart.draw(this.points.map((p) => ({ time: p.time, values: Object.values(card.lines).map((name) => p[name]) })));
    }
  }
}
