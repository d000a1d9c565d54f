// What the experts do: a heat map of layer x expert, now, in a window, or one layer over time; figures of each layer.

import { get } from "./api.js";
import { at, every, fill, say, STOP } from "./dom.js";
import { count, percent, plural, seconds, times } from "./format.js";
import { HeatMap, paintScale } from "./heatmap.js";
import { figuresOf, History, total } from "./history.js";
import { showFigures } from "./layers.js";
import { layerSelect, onShared, shared } from "./shared.js";

const PERIOD = 2000; // ms between looks
const LIVE = 6; // seconds that "live" shows
const COLUMNS = 90; // of the view over time
const PATH = "v1/moe/experts";

export class Experts {
  constructor() {
    this.history = new History();
    this.shown = null; // {layers: [{counts, figures}], note}
    this.map = new HeatMap(at("heat"), {
      onLook: (row, column) => this.describe(row, column),
      onPick: (row) => this.view !== "time" && shared.setPlace(row),
    });
    paintScale(at("heat-scale"));
    layerSelect(at("heat-layer"));
    onShared("place", () => this.paint());
    for (const id of ["heat-view", "heat-tag"]) at(id).addEventListener("change", () => this.change(id));
    this.look = every(PERIOD, () => this.read());
  }

  get view() {
    return at("heat-view").value;
  }

  change(id) {
    if (id === "heat-tag") this.history.clear();
    at("heat-layer").closest("label").hidden = this.view !== "time";
    this.read();
  }

  // Never throws: a server that does not answer is told by the status line. A model without experts hides the panel.
  async read() {
    const tag = at("heat-tag").value;
    const path = (window) => `${PATH}?window=${window}${tag ? `&tag=${encodeURIComponent(tag)}` : ""}`;
    const { view } = this;
    const windowed = !["live", "time"].includes(view);
    try {
      const reply = await get(path(windowed ? view : "start"));
      if (tag !== at("heat-tag").value || view !== this.view) return; // another was chosen meanwhile
      at("experts").hidden = false;
      shared.setLayers(reply.layers);
      fill(at("heat-tag"), [["", "all tokens"], ...reply.tags.map((name) => [name, name])]);
      fill(
        at("known-tags"),
        reply.tags.map((name) => [name, name]),
      );
      this.take(reply, windowed);
      this.paint();
    } catch (error) {
      if (error.status !== 404) return;
      at("experts").hidden = shared.without = true;
      return STOP;
    }
  }

  take(reply, windowed) {
    if (windowed) {
      const layers = reply.layers.map((l) => ({ counts: l.tokens, figures: l }));
      this.shown = { layers, note: `over ${seconds(reply.seconds)}` };
      return;
    }
    this.history.add(performance.now() / 1000, reply.layers);
    const recent = this.history.recent(LIVE);
    const counts = recent?.counts ?? reply.layers.map((l) => Float64Array.from(l.tokens));
    const layers = reply.layers.map((l, i) => ({ counts: counts[i], figures: figuresOf(counts[i]) }));
    const age = recent?.age ?? 0;
    this.shown = {
      layers,
      note: !recent
        ? "since start: nothing new since this page opened"
        : age < 3
          ? "now"
          : `${seconds(Math.round(age))} ago`,
    };
  }

  paint() {
    if (!this.shown) return;
    if (this.view === "time") this.paintTime();
    else this.paintLayers();
    at("heat-cross").hidden = !this.map.crosses;
    showFigures(this.shown.layers);
  }

  paintLayers() {
    const { layers, note } = this.shown;
    const worst = Math.max(2, ...layers.map((l) => l.figures.imbalance ?? 0));
    const hot = layers.map((l) => ratios(l.counts));
    const tokens = Math.max(...layers.map((l) => total(l.counts)));
    this.map.draw({
      rows: shared.layers.map((l) => l.short),
      columns: Math.max(...layers.map((l) => l.counts.length)),
      columnLabel: String,
      smallest: 5,
      tall: innerWidth < 700 ? 200 : 340,
      picked: shared.place,
      ratio: (row, column) => hot[row][column] ?? NaN,
      crosses: tokens > 0,
      bars: layers.map((l) => ({ value: (l.figures.imbalance ?? 0) / worst, text: times(l.figures.imbalance) })),
    });
    say(at("heat-note"), tokens ? `${count(tokens)} routed tokens a layer · ${note}` : `no tokens yet · ${note}`);
    say(at("heat-axes"), "down: layers · across: experts · bars: imbalance, the busiest expert over the mean");
  }

  paintTime() {
    const { place } = shared;
    const steps = this.history.steps(place);
    const experts = this.shown.layers[place].counts.length;
    const columns = COLUMNS;
    const first = Math.max(0, steps.length - columns);
    const seen = steps.slice(first);
    const hot = seen.map((step) => (total(step.counts) ? ratios(step.counts) : []));
    this.steps = seen;
    this.map.draw({
      rows: Array.from({ length: experts }, (_, i) => String(i)),
      columns,
      smallest: 3,
      tall: 340,
      picked: null,
      bars: null,
      columnLabel: (column) => `−${seconds(((columns - 1 - column) * PERIOD) / 1000)}`,
      columnStep: 15,
      ratio: (row, column) => hot[column - (columns - seen.length)]?.[row] ?? NaN,
      crosses: false,
    });
    say(at("heat-note"), `${shared.layerName} · a column is ${PERIOD / 1000} s, blank where nothing ran`);
    say(at("heat-axes"), "down: experts · across: time, the newest on the right");
  }

  // The text of the cell under the cursor; the same for the eye and for a screen reader.
  describe(row, column) {
    let text = "";
    if (row !== null && this.view === "time") {
      const step = this.steps[column - (COLUMNS - this.steps.length)];
      const ago = seconds(((COLUMNS - 1 - column) * PERIOD) / 1000);
      text = `expert ${row}, ${ago} ago: ${step ? tell(step.counts, row) : "not recorded"}`;
    } else if (row !== null) {
      const { counts } = this.shown.layers[row];
      text =
        column < counts.length ? `layer ${shared.layers[row].name}, expert ${column}: ${tell(counts, column)}` : "";
    }
    say(at("heat-cell"), text || "Point at a cell, or walk with the arrow keys.");
  }
}

// Times the mean, by expert; without tokens 0 for each.
function ratios(counts) {
  const mean = total(counts) / counts.length || 1;
  return Array.from(counts, (count) => count / mean);
}

function tell(counts, expert) {
  const sum = total(counts);
  if (!counts[expert]) return "no tokens";
  const [own, share] = [plural(counts[expert], "token"), counts[expert] / sum];
  return `${own}, ${percent(share)} of the layer's, ${times(share * counts.length)} the mean`;
}
