// The figures of each layer as a table, and the worst of them as a line.

import { at, element, say } from "./dom.js";
import { count, number, percent, plural, times } from "./format.js";
import { total } from "./history.js";
import { shared } from "./shared.js";

const LISTED = 12; // experts without tokens that are listed

// `layers` are {counts, figures: {utilization, imbalance, entropy, dead}}, as in `shared.layers`.
export function showFigures(layers) {
  at("layer-rows").replaceChildren(...layers.map(({ counts, figures }, place) => row(place, counts, figures)));
  const imbalances = layers.map(({ figures }) => figures.imbalance ?? 0);
  const worst = Math.max(...imbalances);
  const where = shared.layers[imbalances.indexOf(worst)].name;
  const dead = total(layers.map(({ figures }) => figures.dead.length));
  const told = `worst imbalance ${times(worst)} in layer ${where} · ${plural(dead, "dead expert")}`;
  say(at("layer-summary"), worst ? told : "none yet");
}

function row(place, counts, { utilization, imbalance, entropy, dead }) {
  const texts = [count(total(counts)), percent(utilization), times(imbalance), number(entropy), listed(dead)];
  const head = element("th", { scope: "row" }, shared.layers[place].name);
  return element("tr", {}, head, ...texts.map((text) => element("td", {}, text)));
}

function listed(ids) {
  if (!ids.length) return "none";
  return ids.length > LISTED ? `${ids.length}: ${ids.slice(0, LISTED).join(", ")} …` : ids.join(", ");
}
