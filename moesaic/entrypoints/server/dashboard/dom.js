// Finding and making elements. Text goes in as text, never as HTML.

export const at = (id) => document.getElementById(id);

// element("p", { className: "quiet" }, "text", child): properties as JavaScript calls them.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// An unchanged text is not set again: a screen reader would say it each time.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Fills a <select> with [value, label] pairs; the choice stays where it can.
export function fill(select, options) {
  const same = ([value, label], i) => select.options[i]?.value === value && select.options[i].label === label;
  if (select.options.length === options.length && options.every(same)) return;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

// Says that the server has no such page: there is nothing to ask for again.
export const STOP = Symbol("stop");

// Calls `work` now and every `period` ms while the page is seen, until it returns STOP; the next call waits for the
// last one's end. Returns a function that calls it at once.
export function every(period, work) {
  let timer = 0;
  let working = false;
  let over = false;
  async function run() {
    if (document.hidden || working || over) return;
    clearTimeout(timer);
    working = true;
    try {
      over = (await work()) === STOP;
    } finally {
      working = false;
      if (!over) timer = setTimeout(run, period);
    }
  }
  document.addEventListener("visibilitychange", run);
  run();
  return run;
}
