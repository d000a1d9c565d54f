// A canvas of cells, rows x columns, with a cursor that the pointer or the arrow keys move.

import { heat, ink, whenThemeChanges } from "./colours.js";

const LABELS = 30; // px left of the cells
const TOP = 4; // px above them
const AXIS = 16; // px below them
const HOTTEST = 4; // times the mean: the end of the colour scale

// How hot a cell is that has `ratio` times the mean: 0 at nothing, 1 at HOTTEST; the root tells the cold ones apart.
const heatOf = (ratio) => Math.sqrt(Math.min(1, ratio / HOTTEST));

// The legend: the scale from nothing to HOTTEST, evenly in tokens.
export function paintScale(canvas) {
  const pen = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    pen.fillStyle = heat(heatOf((HOTTEST * x) / (canvas.width - 1)));
    pen.fillRect(x, 0, 1, canvas.height);
  }
  whenThemeChanges(() => paintScale(canvas), { once: true });
}

export class HeatMap {
  // `onLook(row, column)` is told where the cursor is (nulls: nowhere); `onPick(row)` which row was clicked or entered.
  constructor(canvas, { onLook, onPick = () => {} }) {
    Object.assign(this, { canvas, onLook, onPick, data: null, cursor: null, bars: 0 });
    this.still = document.createElement("canvas"); // all but the cursor, which moves often
    canvas.addEventListener("pointermove", (event) => this.move(this.cellAt(event)));
    canvas.addEventListener("pointerleave", () => this.move(null));
    canvas.addEventListener("click", (event) => this.pick(this.cellAt(event)));
    canvas.addEventListener("blur", () => this.move(null));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.paint()).observe(canvas.parentElement);
    whenThemeChanges(() => this.paint());
  }

  // data: {rows: [label], columns: number, ratio: (row, column) => times the mean or NaN,
  //        columnLabel: column => text, columnStep: columns from label to label (undefined: as fits),
  //        bars: null or [{value, text}] a row (value from 0 to 1), picked: row or null, crosses: whether 0 gets one,
  //        tall: px of the cells together, smallest: px of a cell}
  draw(data) {
    this.data = data;
    this.paint();
  }

  measure() {
    const { rows, columns, bars } = this.data;
    const width = this.canvas.parentElement.clientWidth;
    this.bars = bars ? Math.min(96, width / 4) : 0;
    this.cell = {
      width: (width - LABELS - this.bars) / columns,
      height: Math.min(60, Math.max(this.data.smallest, this.data.tall / rows.length)),
    };
    return { width, height: TOP + Math.ceil(this.cell.height * rows.length) + AXIS };
  }

  // Whether cells are large enough for the crosses of dead experts.
  get crosses() {
    return this.data.crosses && Math.min(this.cell.width, this.cell.height) >= 7;
  }

  paint() {
    if (!this.data || !this.canvas.parentElement.clientWidth) return;
    const { width, height } = this.measure();
    this.scale = window.devicePixelRatio || 1;
    for (const canvas of [this.still, this.canvas]) {
      canvas.width = Math.round(width * this.scale);
      canvas.height = Math.round(height * this.scale);
    }
    this.canvas.style.height = `${height}px`;
    const pen = this.penOf(this.still);
    pen.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    pen.textBaseline = "middle";
    this.paintCells(pen);
    this.paintLabels(pen);
    if (this.bars) this.paintBars(pen);
    this.paintCursor();
  }

  // Draws in px of the page, from the cells' upper edge.
  penOf(canvas) {
    const pen = canvas.getContext("2d");
    pen.setTransform(this.scale, 0, 0, this.scale, 0, TOP * this.scale);
    return pen;
  }

  paintCells(pen) {
    const { rows, columns, ratio } = this.data;
    const { width, height } = this.cell;
    const gap = Math.min(width, height) > 5 ? 1 : 0;
    const { crosses } = this;
    for (let row = 0; row < rows.length; row++) {
      for (let column = 0; column < columns; column++) {
        const value = ratio(row, column);
        if (Number.isNaN(value)) continue;
        const [x, y] = [LABELS + column * width, row * height];
        pen.fillStyle = heat(heatOf(value));
        pen.fillRect(x, y, width - gap + (gap ? 0 : 0.5), height - gap + (gap ? 0 : 0.5));
        if (value === 0 && crosses) this.paintCross(pen, x, y);
      }
    }
  }

  // A dead expert: a sign, not only the coldest colour.
  paintCross(pen, x, y) {
    const { width, height } = this.cell;
    const size = Math.min(width, height, 14) / 4;
    const [cx, cy] = [x + width / 2 - 0.5, y + height / 2 - 0.5];
    pen.strokeStyle = ink("quiet");
    pen.beginPath();
    for (const side of [-1, 1]) {
      pen.moveTo(cx - size, cy - side * size);
      pen.lineTo(cx + size, cy + side * size);
    }
    pen.stroke();
  }

  paintLabels(pen) {
    const { rows, columns, columnLabel, picked } = this.data;
    const { width, height } = this.cell;
    const every = Math.ceil(13 / height);
    pen.textAlign = "right";
    rows.forEach((label, row) => {
      if (row !== picked && (row % every || Math.abs(row - (picked ?? -99)) < every)) return;
      pen.fillStyle = ink(row === picked ? "accent" : "quiet");
      pen.fillText(row === picked ? `▸${label}` : label, LABELS - 5, (row + 0.5) * height);
    });
    pen.fillStyle = ink("quiet");
    pen.textAlign = "center";
    const step = this.data.columnStep ?? [1, 2, 4, 8, 16, 32, 64, 128, 256].find((n) => n * width >= 30) ?? 512;
    for (let column = 0; column < columns; column += step) {
      pen.fillText(columnLabel(column), LABELS + (column + 0.5) * width, rows.length * height + AXIS / 2 + 1);
    }
  }

  paintBars(pen) {
    const { rows, columns, bars } = this.data;
    const { width, height } = this.cell;
    const left = LABELS + columns * width + 8;
    const space = this.bars - 8;
    const texts = height >= 11;
    const thick = Math.min(12, height / 2);
    pen.textAlign = "left";
    rows.forEach((_, row) => {
      const { value, text } = bars[row];
      const long = Math.max(1, value * (space - (texts ? 40 : 0)));
      pen.fillStyle = ink("accent");
      pen.fillRect(left, (row + 0.5) * height - thick / 2, long, thick);
      pen.fillStyle = ink("quiet");
      if (texts) pen.fillText(text, left + long + 4, (row + 0.5) * height);
    });
  }

  paintCursor() {
    const pen = this.penOf(this.canvas);
    pen.save();
    pen.resetTransform();
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.still, 0, 0);
    pen.restore();
    if (!this.cursor) return;
    const { width, height } = this.cell;
    pen.strokeStyle = ink("ink");
    pen.lineWidth = 2;
    pen.strokeRect(LABELS + this.cursor.column * width - 1, this.cursor.row * height - 1, width + 1, height + 1);
  }

  cellAt(event) {
    if (!this.data) return null;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LABELS) / this.cell.width);
    const row = Math.floor((event.clientY - box.top - TOP) / this.cell.height);
    const inside = column >= 0 && column < this.data.columns && row >= 0 && row < this.data.rows.length;
    return inside ? { row, column } : null;
  }

  move(cursor) {
    if (cursor?.row === this.cursor?.row && cursor?.column === this.cursor?.column) return;
    this.cursor = cursor;
    if (this.data) this.paintCursor();
    this.onLook(cursor?.row ?? null, cursor?.column ?? null);
  }

  pick(cell) {
    if (cell) this.onPick(cell.row);
  }

  onKey(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!this.data) return;
    if (event.key === "Enter") this.pick(this.cursor);
    if (!step) return;
    event.preventDefault();
    const { row, column } = this.cursor ?? { row: -step[0], column: -step[1] };
    const clip = (x, n) => Math.min(n - 1, Math.max(0, x));
    this.move({ row: clip(row + step[0], this.data.rows.length), column: clip(column + step[1], this.data.columns) });
  }
}
