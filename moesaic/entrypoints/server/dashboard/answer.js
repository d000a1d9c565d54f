// One answer of the model: its text in pieces, a piece for each token (or for the few that make one character), and
// the experts that each token went through.

import { expertColour } from "./colours.js";
import { element } from "./dom.js";
import { shared } from "./shared.js";

export class Answer {
  constructor(bubble) {
    this.bubble = bubble;
    this.pieces = []; // {node, text, first, count}: tokens first .. first + count - 1 of the answer
    this.tokens = 0;
    this.routes = []; // of token i of the answer, by place: [{id, weight}], heaviest first
    this.prompt = null; // tokens before the answer, once known
    this.waiting = 0; // tokens whose text has not come yet
    this.current = null; // index of the piece that is looked at
  }

  get text() {
    return this.pieces.map((piece) => piece.text).join("");
  }

  // One chunk: new text (maybe none), how many tokens it has, and routes (maybe none).
  push(text, tokens, routed) {
    this.tokens += tokens;
    this.waiting += tokens;
    if (routed) this.takeRoutes(routed);
    if (text) {
      const node = element("span", { className: "token", textContent: text });
      this.pieces.push({ node, text, first: this.tokens - this.waiting, count: this.waiting });
      this.waiting = 0;
      this.bubble.append(node);
    }
    if (routed) this.colour(this.coloured);
  }

  // The last token of a chunk was not computed yet: its route comes with the next one.
  takeRoutes({ start, ids, weights }) {
    this.prompt ??= start + ids.length - this.tokens + 1;
    ids.forEach((byLayer, i) => {
      const token = start + i - this.prompt;
      if (token < 0) return;
      this.routes[token] = byLayer.map((chosen, place) => ranked(chosen, weights[i][place]));
    });
  }

  // The experts of a piece in one layer: those of its first token that has routes.
  expertsOf(piece, place) {
    for (let token = piece.first; token < piece.first + Math.max(1, piece.count); token++) {
      const route = this.routes[token]?.[place];
      if (route) return route;
    }
    return null;
  }

  routesOf(piece) {
    return this.routes[piece.first] ?? null;
  }

  // Colours from the piece at `from` on. The ground is the heaviest expert's, the line below has a part for each.
  colour(from = 0) {
    this.coloured = this.pieces.length;
    for (let i = from; i < this.pieces.length; i++) {
      const piece = this.pieces[i];
      const experts = this.expertsOf(piece, shared.place);
      if (!experts) this.coloured = Math.min(this.coloured, i);
      piece.node.style.backgroundColor = experts ? expertColour(experts[0].id) : "";
      piece.node.style.backgroundImage = experts ? stripes(experts) : "";
      piece.node.dataset.expert = experts ? experts[0].id : "";
    }
  }
}

// -1 stands for a choice that was not used.
function ranked(ids, weights) {
  const experts = ids.map((id, i) => ({ id, weight: weights[i] })).filter((e) => e.id >= 0);
  return experts.sort((a, b) => b.weight - a.weight);
}

function stripes(experts) {
  const sum = experts.reduce((s, e) => s + Math.abs(e.weight), 0) || 1;
  let done = 0;
  const parts = experts.map((e) => {
    const begin = done;
    done += (100 * Math.abs(e.weight)) / sum;
    return `${expertColour(e.id, true)} ${begin.toFixed(1)}% ${done.toFixed(1)}%`;
  });
  return `linear-gradient(to right, ${parts.join(", ")})`;
}
