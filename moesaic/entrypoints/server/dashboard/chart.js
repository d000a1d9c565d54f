// A small chart of lines over the last minutes, drawn as SVG, so that it follows the colours of style.css.

import { element, say, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 72;

// The next of 1, 2, 5, 10, 20, ... (times any power of ten): an axis that seldom moves.
export function roundUp(x) {
  if (!(x > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(x));
  return power * [1, 2, 5, 10].find((step) => x <= step * power * 1.0001);
}

export const roundUpBinary = (x) => (x > 0 ? 2 ** Math.ceil(Math.log2(x)) : 1);

const dot = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;

export class Chart {
  // `figure` gets the chart; `names` are its lines'; `format` writes a value; `top` fixes the axis' end, else it is
  // `round` of the highest value; `longest` is the most seconds across.
  constructor(figure, names, format, { top = null, longest = 180, round = roundUp } = {}) {
    Object.assign(this, { names, format, top, longest, round, span: longest, points: [], seen: null });
    this.lines = names.map((_, i) => svg("path", { class: `line line-${i}`, fill: "none" }));
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.plot.append(
      svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      ...this.lines,
      this.cursor,
    );
    this.highest = element("span", { className: "highest" });
    this.readout = element("figcaption");
    figure.classList.add("chart");
    figure.tabIndex = 0;
    figure.append(this.highest, this.plot, this.readout);
    figure.addEventListener("pointermove", (event) => {
      const box = this.plot.getBoundingClientRect();
      this.look((event.clientX - box.left) / box.width);
    });
    for (const leaving of ["pointerleave", "blur"]) figure.addEventListener(leaving, () => this.look(null));
    figure.addEventListener("keydown", (event) => this.onKey(event));
  }

  // `points` are {time, values: [one a line, null where unknown]}, oldest first, times in seconds.
  draw(points) {
    this.points = points;
    this.span = Math.min(this.longest, Math.max(30, points.at(-1).time - points[0].time));
    const values = points.flatMap((p) => p.values).filter((v) => v !== null);
    this.ceiling = this.top ?? this.round(Math.max(0, ...values));
    say(this.highest, values.length ? this.format(this.ceiling) : "");
    this.lines.forEach((line, i) => line.setAttribute("d", this.path(i)));
    this.show();
  }

  x(point) {
    return WIDTH * (1 - (this.points.at(-1).time - point.time) / this.span);
  }

  // A line breaks where its value is not known.
  path(i) {
    let command = "M";
    let text = "";
    for (const point of this.points) {
      const value = point.values[i];
      if (value === null || this.x(point) < 0) {
        command = "M";
        continue;
      }
      text += command + dot(this.x(point), HEIGHT - 1 - (HEIGHT - 4) * Math.min(1, value / this.ceiling));
      command = "L";
    }
    return text;
  }

  // Look at the moment at `share` of the width; null for now.
  look(share) {
    this.seen = share === null ? null : Math.min(1, Math.max(0, share));
    this.show();
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.look((this.seen ?? 1) + step / 30);
  }

  show() {
    const last = this.points.at(-1);
    this.cursor.setAttribute("visibility", this.seen === null || !last ? "hidden" : "visible");
    if (!last) return;
    let point = last;
    if (this.seen !== null) {
      const wanted = last.time - (1 - this.seen) * this.span;
      point = this.points.reduce((a, b) => (Math.abs(b.time - wanted) < Math.abs(a.time - wanted) ? b : a));
      for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(point).toFixed(1));
    }
    const ago = Math.round(last.time - point.time);
    const parts = this.names.map((name, i) =>
      element("span", { className: `key key-${i}` }, `${name} ${this.format(point.values[i])}`),
    );
    this.readout.replaceChildren(...parts, ...(ago ? [element("span", {}, `${ago} s ago`)] : []));
  }
}
