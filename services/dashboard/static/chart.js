// Draws one chart as SVG: lines with the band of least and greatest, stacked shares, or bars. Knows no meaning.
//
//   const chart = new Chart(parent, { title, unit, kind: "line" | "stack" | "bars", format, axis, log, note, series: [{ label, colour }] });
//   chart.show([{ xs, mean, low, high, newest }, ...])      newest: the exact last value, where lines are joined
//
// `sparse`: only some xs have a value; a line joins those that have, with a dot at each. `group`: charts that point together.
// `onZoom(from, to)` and `onReset()`: a stretch was dragged over, the chart was double-clicked.

import { ticks, ticksOfPowers, ticksOfTime } from "./axis.js";
import { asCsv, asPng, download } from "./download.js";
import { clock, element, number } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150, LARGE = 420;
const EDGE = { left: 50, right: 10, top: 8, bottom: 20 };
const TICK_PX = 60;
const all = new Set();

// How all charts of the page are drawn: `smooth` in 0 .. 1 is the weight of what came before, `log` asks for a logarithmic scale.
const look = { smooth: 0, log: false };

export function setLook(changes) {
  Object.assign(look, changes);
  for (const chart of all) chart.draw();
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const isKnown = (value) => value !== null && value !== undefined && Number.isFinite(value);
const known = (values) => values.filter(isKnown);
const extreme = (pick, values, fallback) => (values.length ? values.reduce((one, other) => pick(one, other)) : fallback);

export class Chart {
  constructor(parent, spec) {
    this.spec = { kind: "line", format: number, axis: number, ...spec };
    this.series = [];
    this.xs = [];
    this.at = null;
    this.readout = element("span", { class: "at" });
    this.values = spec.series.map(() => element("span"));
    const legend = spec.series.map(({ label, colour, dashed }, index) =>
      element("span", {}, element("i", { class: `c${colour}${dashed ? " dashed" : ""}` }), `${label} `, this.values[index]));
    this.svg = shape("svg", { role: "img", tabindex: "0", "aria-label": spec.title });
    const tool = (text, does, work, name = text) => {
      const button = element("button", { type: "button", class: "tool", "aria-label": `${name}: ${spec.title}`, title: does }, text);
      button.addEventListener("click", work);
      return button;
    };
    this.enlarge = tool("⤢", "Enlarge", () => this.#enlarge(), "Enlarge");
    const name = () => `${document.title.split("· ").at(-1)}-${spec.title}`.replace(/[^\w.-]+/g, "-");
    const tools = element("span", { class: "tools" }, this.enlarge,
      tool("PNG", "Save as picture", async () => download(`${name()}.png`, await asPng(this.svg, spec.title, spec.series))),
      tool("CSV", "Save the numbers", () => download(`${name()}.csv`, asCsv(this.spec.unit_x ?? "x", spec.series, this.raw ?? []))));
    const caption = element("figcaption", {}, element("h4", {}, spec.title), tools, element("span", { class: "unit" }, spec.unit ?? ""),
      this.readout, element("span", { class: "legend" }, ...legend));
    this.figure = element("figure", { class: "chart", "data-chart": spec.title }, caption, this.svg);
    if (spec.note) this.figure.append(element("p", { class: "note" }, spec.note));
    parent.append(this.figure);
    all.add(this);
    this.#listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.figure);
  }

  remove() { all.delete(this); this.observer.disconnect(); this.figure.remove(); }

  show(series) {
    const mark = JSON.stringify(series.map(({ xs, mean, newest }) => [xs.length, xs[0], xs.at(-1), mean[0], mean.at(-1), newest]));
    if (mark === this.shown) return;
    this.shown = mark;
    this.raw = series;
    this.series = this.spec.kind === "stack" ? stacked(series) : series;
    this.xs = series.length === 1 ? series[0].xs : [...new Set(series.flatMap(({ xs }) => xs))].sort((one, other) => one - other);
    this.draw();
  }

  draw() {
    this.width = this.figure.clientWidth - 29;
    if (this.width < 60) return;
    this.height = this.figure.hasAttribute("data-large") ? LARGE : HEIGHT;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.#scale();
    this.layer = shape("g", {});
    const empty = !known(this.series.flatMap(({ mean }) => mean)).length;
    const parts = empty ? [] : [...this.#axes()];
    if (empty) parts.push(shape("text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, "nothing yet"));
    else this.series.forEach((series, index) => parts.push(...this.#drawn(series, index)));
    this.svg.replaceChildren(...parts, this.layer);
    this.point(this.at);
  }

  #scale() {
    const { kind } = this.spec;
    const values = known(this.series.flatMap(({ mean, low, high }) => [...mean, ...(low ?? []), ...(high ?? [])]));
    let low = extreme(Math.min, values, 0), high = extreme(Math.max, values, 1);
    this.log = kind === "line" && (this.spec.log || look.log) && low > 0;
    if (kind !== "line") low = 0;
    if (kind === "stack") high = 1;
    else if (!this.log && low >= 0 && low < 0.5 * high) low = 0;
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= low === 0 ? 0 : pad; high += pad; }
    const warp = this.log ? Math.log10 : (value) => value;
    const [bottom, top] = [this.height - EDGE.bottom, EDGE.top];
    const [from, to] = [warp(low), warp(high)];
    const room = to - from || 1;
    this.low = low; this.high = high;
    this.y = (value) => bottom - ((warp(value) - from) / room) * (bottom - top);
    const first = this.xs[0] ?? 0, last = this.xs.at(-1) ?? 1;
    const inner = this.width - EDGE.left - EDGE.right;
    this.slot = inner / Math.max(1, this.xs.length);
    this.x = kind === "bars"
      ? (value) => EDGE.left + (this.xs.indexOf(value) + 0.5) * this.slot
      : (value) => EDGE.left + (last > first ? (value - first) / (last - first) : 0.5) * inner;
  }

  #axes() {
    const { format, axis, kind } = this.spec;
    const made = [];
    const levels = this.log ? ticksOfPowers(this.low, this.high) : ticks(this.low, this.high, this.height === LARGE ? 8 : 4);
    distinct(levels, format).forEach((label, index) => {
      const y = this.y(levels[index]);
      made.push(shape("line", { class: "grid", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }));
      made.push(shape("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, label));
    });
    if (!this.xs.length) return made;
    const wanted = Math.max(1, Math.floor((this.width - EDGE.left) / TICK_PX));
    const [first, last] = [this.xs[0], this.xs.at(-1)];
    const marks = kind === "bars" ? this.xs : first === last ? [first] : axis === clock ? ticksOfTime(first, last, wanted) : ticks(first, last, wanted);
    distinct(marks, axis).forEach((label, index) => {
      const x = this.x(marks[index]);
      const anchor = x < EDGE.left + 12 ? "start" : x > this.width - 24 ? "end" : "middle";
      made.push(shape("text", { x: Math.min(x, this.width - 2), y: this.height - 5, "text-anchor": anchor }, label));
    });
    return made;
  }

  #drawn(series, index) {
    const { colour, dashed } = this.spec.series[index];
    const painted = `c${colour}${dashed ? " dashed" : ""}`;
    if (this.spec.kind === "bars") {
      const wide = Math.min(60, this.slot * 0.7);
      return series.xs.map((x, at) => shape("rect", { class: painted, rx: 3, x: this.x(x) - wide / 2, width: wide,
        y: this.y(series.mean[at] ?? 0), height: Math.max(0, this.y(0) - this.y(series.mean[at] ?? 0)) }));
    }
    if (this.spec.kind === "stack") return [shape("path", { class: `area ${painted}`, d: this.#between(series.xs, series.base, series.mean) })];
    const made = [];
    if (series.low) made.push(shape("path", { class: `band ${painted}`, d: this.#between(series.xs, series.low, series.high) }));
    const smooth = look.smooth > 0 && !this.spec.sparse;
    made.push(shape("path", { class: `line ${painted}${smooth ? " faint" : ""}`, d: this.#line(series.xs, series.mean) }));
    if (smooth) made.push(shape("path", { class: `line ${painted}`, d: this.#line(series.xs, smoothed(series.mean, look.smooth)) }));
    const places = series.xs.map((_, at) => at).filter((at) => isKnown(series.mean[at]));
    for (const at of this.spec.sparse || places.length === 1 ? places : []) {
      made.push(shape("circle", { class: `dot ${painted}`, r: 3.5, cx: this.x(series.xs[at]), cy: this.y(series.mean[at]) }));
    }
    return made;
  }

  #line(xs, values) {
    let pen = "M";
    return values.map((value, at) => {
      if (!isKnown(value)) { if (!this.spec.sparse) pen = "M"; return ""; }
      const step = `${pen}${this.x(xs[at]).toFixed(1)},${this.y(value).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
  }

  #between(xs, lower, upper) {
    const places = xs.map((_, at) => at).filter((at) => isKnown(lower[at]) && isKnown(upper[at]));
    const point = (values) => (at) => `${this.x(xs[at]).toFixed(1)},${this.y(values[at]).toFixed(1)}`;
    if (!places.length) return "";
    return `M${places.map(point(upper)).join("L")}L${places.reverse().map(point(lower)).join("L")}Z`;
  }

  // Shows the values at x (the newest where it is null), with a cross-hair where it is not.
  point(x) {
    this.at = x !== null && this.xs.includes(x) ? x : null;
    if (!this.xs.length) return;
    const shown = (this.raw ?? []).map((series) => this.#valueOf(series));
    this.values.forEach((span, index) => { span.textContent = this.spec.kind === "bars" && this.at === null ? "" : shown[index] ?? "–"; });
    this.readout.textContent = this.at === null ? "" : this.spec.axis(this.at);
    const told = this.spec.series.map(({ label }, index) => `${label} ${shown[index] ?? "–"}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.spec.title}: ${told}${this.at === null ? " at the end" : ` at ${this.readout.textContent}`}`);
    const place = this.at === null ? undefined : this.x?.(this.at);
    this.layer?.replaceChildren(...(place === undefined ? [] : [shape("line", { class: "cross", x1: place, x2: place, y1: EDGE.top, y2: this.height - EDGE.bottom })]));
  }

  #valueOf({ xs, mean, low, high, newest }) {
    const { format } = this.spec;
    if (this.at === null) return format(newest ?? mean.findLast(isKnown));
    const at = nearest(xs, this.at);
    const joined = isKnown(low?.[at]) && low[at] !== high[at] ? ` (${format(low[at])} to ${format(high[at])})` : "";
    return at < 0 ? "–" : `${format(mean[at])}${joined}`;
  }

  #enlarge() {
    const large = this.figure.toggleAttribute("data-large");
    this.enlarge.setAttribute("aria-pressed", String(large));
    this.draw();
    this.figure.scrollIntoView({ block: "nearest" });
  }

  #listen() {
    const at = (event) => this.#xAt(event.clientX - this.svg.getBoundingClientRect().left);
    let start = null;
    this.svg.addEventListener("pointerdown", (event) => { start = at(event); });
    this.svg.addEventListener("pointermove", (event) => {
      const x = at(event);
      this.#broadcast(x);
      if (start !== null && x !== null && start !== x) this.#brush(start, x);
    });
    this.svg.addEventListener("pointerup", (event) => {
      const end = at(event);
      if (start !== null && end !== null && end !== start) this.spec.onZoom?.(Math.min(start, end), Math.max(start, end));
      start = null;
    });
    this.svg.addEventListener("dblclick", () => this.spec.onReset?.());
    const leave = () => { start = null; this.#broadcast(null); };
    for (const kind of ["pointerleave", "pointercancel", "blur"]) this.svg.addEventListener(kind, leave);
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined || !this.xs.length) return;
      event.preventDefault();
      const now = this.at === null ? this.xs.length - 1 : this.xs.indexOf(this.at);
      this.#broadcast(this.xs[Math.min(this.xs.length - 1, Math.max(0, now + step))]);
    });
  }

  #xAt(pixel) {
    if (!this.xs.length || !this.x) return null;
    if (this.spec.kind === "bars") return this.xs[Math.min(this.xs.length - 1, Math.max(0, Math.floor((pixel - EDGE.left) / this.slot)))];
    const [first, last] = [this.xs[0], this.xs.at(-1)];
    const inner = this.width - EDGE.left - EDGE.right;
    return this.xs[nearest(this.xs, first + ((pixel - EDGE.left) / inner) * (last - first))];
  }

  #brush(from, to) {
    const [left, right] = [this.x(from), this.x(to)].sort((one, other) => one - other);
    this.layer.append(shape("rect", { class: "brush", x: left, width: right - left, y: EDGE.top, height: this.height - EDGE.top - EDGE.bottom }));
  }

  // Charts over the same axis point at the same place.
  #broadcast(x) {
    for (const chart of all) if (chart === this || (this.spec.group && chart.spec.group === this.spec.group)) chart.point(x);
  }
}

// Index of the x that is nearest to the wanted one, of xs that ascend; -1 where there is none.
function nearest(xs, wanted) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < wanted) low = middle; else high = middle; }
  return high < 0 || Math.abs(xs[low] - wanted) <= Math.abs(xs[high] - wanted) ? Math.min(low, high) : high;
}

// Labels for the levels, with as many digits as tell them apart.
function distinct(levels, format) {
  for (let digits = 3; digits < 9; digits += 1) {
    const labels = levels.map((level) => format(level, digits));
    if (new Set(labels).size === labels.length) return labels;
  }
  return levels.map((level) => format(level));
}

// An exponential mean that starts at the first value instead of at zero.
function smoothed(values, weight) {
  let sum = 0, share = 0;
  return values.map((value) => {
    if (!isKnown(value)) return value;
    sum = sum * weight + value * (1 - weight);
    share = share * weight + (1 - weight);
    return sum / share;
  });
}

function stacked(series) {
  let base = series[0]?.mean.map(() => 0) ?? [];
  return series.map(({ xs, mean }) => {
    const top = base.map((value, at) => (isKnown(mean[at]) ? Math.min(1, value + mean[at]) : null));
    const made = { xs, base, mean: top };
    base = top.map((value) => value ?? 0);
    return made;
  });
}
