// The advice panel: what the server would change, with the figures behind it.

import { get } from "./api.js";
import { at, element, every, STOP } from "./dom.js";

const PERIOD = 10000;

export function watchAdvice() {
  return every(PERIOD, async () => {
    try {
      show(await get("v1/moe/advice"));
      at("advice").hidden = false;
    } catch (error) {
      if (error.status === 404) return STOP;
    }
  });
}

// {traffic, outcomes: [{branch, findings: [{problem, because: [], advice}], figures: [], unknown: []}]}
function show({ traffic, outcomes }) {
  const parts = outcomes.map(({ branch, findings, figures, unknown }) =>
    element(
      "li",
      { className: findings.length ? "finding" : "fine" },
      element(
        "p",
        {},
        element("strong", {}, branch),
        element("span", { className: "quiet" }, findings.length ? " · look here" : " · well"),
      ),
      ...(findings.length
        ? findings.flatMap(tell)
        : [element("p", { className: "quiet" }, [...figures, ...unknown].join("; "))]),
    ),
  );
  at("traffic").textContent = traffic;
  at("advice-list").replaceChildren(...parts);
}

const tell = ({ problem, because, advice }) => [
  element("p", {}, advice),
  element("p", { className: "quiet" }, [problem, ...because].join("; ")),
];
