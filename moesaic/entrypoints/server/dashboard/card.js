// The card that tells of one token: which experts of the chosen layer it went through, and a map of all layers.

import { expertColour, ink } from "./colours.js";
import { at, element } from "./dom.js";
import { percent } from "./format.js";
import { shared } from "./shared.js";

const spelled = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "␣");

let shown = null; // the piece that the card tells of
addEventListener("scroll", () => shown && place(at("card"), shown), { passive: true, capture: true });

// Shows the card of a piece of an answer, beside it.
export function showCard(answer, piece) {
  shown = piece;
  const card = at("card");
  const experts = answer.expertsOf(piece, shared.place);
  const routes = answer.routesOf(piece);
  const where = answer.prompt === null ? "" : ` · position ${answer.prompt + piece.first}`;
  card.replaceChildren(
    element(
      "p",
      { className: "card-token" },
      element("strong", {}, spelled(piece.text)),
      element("span", { className: "quiet" }, where),
    ),
    ...(experts
      ? [element("p", { className: "quiet" }, shared.layerName), listOf(experts), ...mapOf(routes)]
      : [
          element(
            "p",
            { className: "quiet" },
            "No routes: the last token is never computed, and routes must be asked for.",
          ),
        ]),
  );
  card.hidden = false;
  place(card, piece);
}

export function hideCard() {
  shown = null;
  at("card").hidden = true;
}

function listOf(experts) {
  const sum = experts.reduce((s, e) => s + Math.abs(e.weight), 0) || 1;
  const items = experts.map(({ id, weight }) => {
    const bar = element("span", { className: "weight" });
    bar.style.width = `${((100 * Math.abs(weight)) / sum).toFixed(1)}%`;
    bar.style.backgroundColor = expertColour(id, true);
    const track = element("span", { className: "track" }, bar);
    return element("li", {}, element("span", {}, `expert ${id}`), track, element("span", {}, percent(weight / sum)));
  });
  return element("ol", { className: "weights" }, ...items);
}

// Layers down, experts across; the darker, the heavier.
function mapOf(routes) {
  if (!routes || routes.length < 2) return [];
  const experts = Math.max(...shared.layers.map((l) => l.num_experts));
  const [width, tall] = [248, Math.max(2, Math.min(8, 120 / routes.length))];
  const canvas = element("canvas", { width: 2 * width, height: 2 * tall * routes.length });
  canvas.style.height = `${tall * routes.length}px`;
  canvas.setAttribute("aria-hidden", "true");
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  routes.forEach((chosen, place) => {
    pen.fillStyle = place === shared.place ? ink("line") : ink("ground");
    pen.fillRect(0, place * tall, width, tall - 1);
    for (const { id, weight } of [...chosen].reverse()) {
      pen.globalAlpha = 0.35 + 0.65 * Math.min(1, Math.abs(weight) / Math.abs(chosen[0].weight || 1));
      pen.fillStyle = expertColour(id, true);
      pen.fillRect((id * width) / experts, place * tall, Math.max(2, width / experts - 1), tall - 1);
      pen.globalAlpha = 1;
    }
  });
  return [
    element("p", { className: "quiet" }, `All ${routes.length} layers (down), experts 0 to ${experts - 1} (across)`),
    canvas,
  ];
}

// Below the token, or above it where there is no room.
function place(card, piece) {
  const token = piece.node.getClientRects()[0];
  if (!token) return hideCard();
  const room = document.documentElement.clientWidth - card.offsetWidth - 8;
  const below = token.bottom + 8;
  const fits = below + card.offsetHeight < window.innerHeight;
  card.style.left = `${Math.max(8, Math.min(room, token.left))}px`;
  card.style.top = `${fits ? below : Math.max(8, token.top - card.offsetHeight - 8)}px`;
}
