// Numbers as people read them. What is not known is a dash.

const NOTHING = "–";
const known = (x) => x !== null && x !== undefined && Number.isFinite(x);

// Three digits that matter: 0.0123, 4.56, 78.9, 1,234.
export function number(x) {
  if (!known(x)) return NOTHING;
  if (x === 0) return "0";
  const digits = Math.floor(Math.log10(Math.abs(x)));
  return x.toLocaleString("en", { maximumFractionDigits: Math.min(6, Math.max(0, 2 - digits)) });
}

// 1,234 → 1.23 k.
export function count(x) {
  if (!known(x)) return NOTHING;
  for (const [unit, size] of [
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e4],
  ]) {
    if (Math.abs(x) >= size) return `${number(x / (unit === "k" ? 1e3 : size))} ${unit}`;
  }
  return number(Math.round(x));
}

export function percent(x) {
  if (!known(x)) return NOTHING;
  const value = 100 * x;
  return `${value.toFixed(value !== 0 && Math.abs(value) < 10 ? 1 : 0)} %`;
}

export function seconds(x) {
  if (!known(x)) return NOTHING;
  if (x === 0) return "0 s";
  if (x < 0.001) return `${number(x * 1e6)} µs`;
  if (x < 1) return `${number(x * 1e3)} ms`;
  if (x < 120) return `${number(x)} s`;
  return x < 7200 ? `${Math.round(x / 60)} min` : `${number(x / 3600)} h`;
}

export function bytes(x) {
  if (!known(x)) return NOTHING;
  for (const [unit, size] of [
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ]) {
    if (x >= size) return `${number(x / size)} ${unit}`;
  }
  return `${x} B`;
}

export const times = (x) => (known(x) ? `${x.toFixed(x < 10 ? 2 : 1)}×` : NOTHING);
export const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
