// Colours of the canvas and of experts. Light and dark each have their own; style.css holds the rest.

const dark = matchMedia("(prefers-color-scheme: dark)");
export const isDark = () => dark.matches;
export const whenThemeChanges = (redraw, options) => dark.addEventListener("change", redraw, options);

// A colour of style.css by its name.
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// From cold to hot, lightness always going one way, so that it reads without colour too.
const HEAT = {
  light: [
    [240, 238, 231],
    [248, 211, 160],
    [226, 114, 91],
    [158, 42, 60],
    [80, 16, 44],
  ],
  dark: [
    [36, 40, 48],
    [86, 44, 66],
    [186, 72, 74],
    [240, 150, 92],
    [255, 232, 178],
  ],
};

const SHADES = 256;
const shades = {}; // of light and dark, once made: [css]

function mixed(stops, value) {
  const place = value * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(place));
  const parts = stops[i].map((from, c) => Math.round(from + (stops[i + 1][c] - from) * (place - i)));
  return `rgb(${parts.join(" ")})`;
}

// The colour of a heat from 0 to 1.
export function heat(value) {
  const theme = isDark() ? "dark" : "light";
  shades[theme] ??= Array.from({ length: SHADES }, (_, i) => mixed(HEAT[theme], i / (SHADES - 1)));
  return shades[theme][Math.round(Math.min(1, Math.max(0, value)) * (SHADES - 1))];
}

// Experts with neighbouring ids get far-off hues (golden angle); `strong` is for lines, else for grounds behind text.
export function expertColour(id, strong = false) {
  const hue = ((id * 137.508) % 360).toFixed(0);
  if (isDark()) return strong ? `oklch(0.74 0.15 ${hue})` : `oklch(0.4 0.075 ${hue})`;
  return strong ? `oklch(0.62 0.17 ${hue})` : `oklch(0.9 0.065 ${hue})`;
}
