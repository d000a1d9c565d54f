// Two answers to one message, side by side.

import { percent, plural } from "./format.js";
import { shared } from "./shared.js";

// Where two answers part, in words.
export function compare(a, b) {
  const texts = [a, b].map((answer) => answer.pieces.map((piece) => piece.text));
  const shorter = Math.min(...texts.map((t) => t.length));
  let same = 0;
  while (same < shorter && texts[0][same] === texts[1][same]) same++;
  const [routesA, routesB] = [a, b].map((answer) =>
    answer.pieces.slice(0, same).map((p) => answer.expertsOf(p, shared.place)),
  );
  const both = routesA.map((r, i) => [r, routesB[i]]).filter(([r, s]) => r && s);
  const moved = both.filter(([r, s]) => r[0].id !== s[0].id).length;
  const text =
    same === texts[0].length && same === texts[1].length
      ? `The same answer, all ${same} tokens`
      : `The first ${plural(same, "token")} are the same, then they part`;
  return both.length
    ? `${text}; of these, ${percent(moved / both.length)} have another heaviest expert in ${shared.layerName}.`
    : `${text}.`;
}
