// Draws one chart as SVG: lines with the band of least and greatest, stacked shares, or bars. Knows no meaning.
//
//   const chart = new Chart(parent, { title, unit, kind: "line" | "stack" | "bars", format, axis, log, series: [{ label, colour }] });
//   chart.show(xs, [{ mean, low, high, newest }, ...])      newest: the exact last value, where xs are joined
//
// `sparse`: most xs have no value; a line joins those that have, with a dot at each.

import { element, number } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150;
const EDGE = { left: 46, right: 8, top: 8, bottom: 20 };
const all = new Set();

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Three to five round numbers that span low .. high.
export function ticks(low, high, count = 4) {
  const rough = (high - low) / count || Math.abs(high) || 1;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9) * step;
  const found = [];
  for (let at = first; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return found;
}

const known = (values) => values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));

export class Chart {
  constructor(parent, spec, first = false) {
    this.spec = { kind: "line", format: number, axis: number, ...spec };
    this.xs = [];
    this.data = [];
    this.at = null;
    this.readout = element("span", { class: "at" });
    this.values = spec.series.map(() => element("span"));
    const legend = spec.series.map(({ label, colour }, index) =>
      element("span", {}, element("i", { class: `c${colour}` }), `${label} `, this.values[index]));
    this.svg = shape("svg", { role: "img", tabindex: "0", "aria-label": spec.title });
    const caption = element("figcaption", {}, element("h3", {}, spec.title), element("span", { class: "unit" }, spec.unit ?? ""),
      this.readout, element("span", { class: "legend" }, ...legend));
    this.figure = element("figure", { class: "chart", "data-chart": spec.title }, caption, this.svg);
    this.figure.toggleAttribute("data-first", first);
    if (first) parent.insertBefore(this.figure, parent.querySelector(":scope > :not([data-first])")); else parent.append(this.figure);
    all.add(this);
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  remove() { all.delete(this); this.figure.remove(); }

  show(xs, data) {
    const before = JSON.stringify([xs.at(-1), xs.length, data.map((series) => series.mean.at(-1)), xs[0]]);
    if (before === this.shown) return;
    this.shown = before;
    this.xs = xs;
    this.data = this.spec.kind === "stack" ? stacked(data) : data;
    this.raw = data;
    this.draw();
  }

  draw() {
    this.width = this.figure.clientWidth - 29;
    if (this.width < 60) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.#scale();
    this.layer = shape("g", {});
    const empty = !known(this.data.flatMap((series) => series.mean)).length;
    const parts = empty ? [] : [...this.#axes()];
    if (empty) parts.push(shape("text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing yet"));
    else this.data.forEach((series, index) => parts.push(...this.#series(series, index)));
    this.svg.replaceChildren(...parts, this.layer);
    this.point(this.at);
  }

  #scale() {
    const { kind, log } = this.spec;
    const values = known(this.data.flatMap((series) => [...series.mean, ...(series.low ?? []), ...(series.high ?? [])]));
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) { low = 0; high = 1; }
    if (kind !== "line") low = 0;
    if (kind === "stack") high = 1;
    else if (!log && low >= 0 && low < 0.5 * high) low = 0;
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= low === 0 ? 0 : pad; high += pad; }
    const warp = log ? (value) => Math.log10(Math.max(value, 1)) : (value) => value;
    const [bottom, top] = [HEIGHT - EDGE.bottom, EDGE.top];
    const [from, to] = [warp(low), warp(high)];
    const room = to - from || 1;
    this.low = low; this.high = high;
    this.y = (value) => bottom - ((warp(value) - from) / room) * (bottom - top);
    const first = this.xs[0] ?? 0, last = this.xs.at(-1) ?? 1;
    const inner = this.width - EDGE.left - EDGE.right;
    const slot = kind === "bars" ? inner / Math.max(1, this.xs.length) : 0;
    this.slot = slot;
    this.x = kind === "bars"
      ? (value) => EDGE.left + (this.xs.indexOf(value) + 0.5) * slot
      : (value) => EDGE.left + (last > first ? (value - first) / (last - first) : 0.5) * inner;
  }

  #axes() {
    const { log, format, axis, kind } = this.spec;
    const made = [];
    const levels = log ? powers(this.low, this.high) : ticks(this.low, this.high, 3);
    for (const level of levels) {
      const y = this.y(level);
      made.push(shape("line", { class: "grid", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }));
      made.push(shape("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, format(level)));
    }
    if (this.xs.length === 0) return made;
    const marks = kind === "bars" ? this.xs : this.xs.length === 1 ? [this.xs[0]] : [this.xs[0], this.xs[(this.xs.length - 1) >> 1], this.xs.at(-1)];
    marks.forEach((mark, index) => {
      const anchor = kind === "bars" || marks.length === 1 ? "middle" : ["start", "middle", "end"][index];
      made.push(shape("text", { x: this.x(mark), y: HEIGHT - 5, "text-anchor": anchor }, axis(mark)));
    });
    return made;
  }

  #series(series, index) {
    const colour = `c${this.spec.series[index].colour}`;
    if (this.spec.kind === "bars") {
      const wide = Math.min(60, this.slot * 0.7);
      return this.xs.map((x, at) => shape("rect", { class: colour, rx: 3, x: this.x(x) - wide / 2, width: wide,
        y: this.y(series.mean[at] ?? 0), height: Math.max(0, this.y(0) - this.y(series.mean[at] ?? 0)) }));
    }
    if (this.spec.kind === "stack") return [shape("path", { class: `area ${colour}`, d: this.#between(series.base, series.mean) })];
    const made = [];
    if (series.low) made.push(shape("path", { class: `band ${colour}`, d: this.#between(series.low, series.high) }));
    made.push(shape("path", { class: `line ${colour}`, d: this.#line(series.mean), fill: "none" }));
    const places = this.xs.map((_, at) => at).filter((at) => series.mean[at] !== null && series.mean[at] !== undefined);
    for (const at of this.spec.sparse || places.length === 1 ? places : []) {
      made.push(shape("circle", { class: `dot ${colour}`, r: 3.5, cx: this.x(this.xs[at]), cy: this.y(series.mean[at]) }));
    }
    return made;
  }

  #line(values) {
    let pen = "M";
    return values.map((value, at) => {
      if (value === null || value === undefined) { if (!this.spec.sparse) pen = "M"; return ""; }
      const step = `${pen}${this.x(this.xs[at]).toFixed(1)},${this.y(value).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
  }

  #between(lower, upper) {
    const places = this.xs.map((_, at) => at).filter((at) => lower[at] !== null && upper[at] !== null);
    const point = (values) => (at) => `${this.x(this.xs[at]).toFixed(1)},${this.y(values[at]).toFixed(1)}`;
    if (!places.length) return "";
    return `M${places.map(point(upper)).join("L")}L${places.reverse().map(point(lower)).join("L")}Z`;
  }

  // Shows the values at the index (the last where it is null), with a cross-hair where it is not.
  point(at) {
    this.at = at !== null && at < this.xs.length ? at : null;
    const place = this.at ?? this.xs.length - 1;
    const series = this.raw ?? [];
    if (place < 0) return;
    const shown = series.map((one) => (this.at === null ? one.newest ?? one.mean.findLast((value) => value !== null) : one.mean[place]));
    this.values.forEach((span, index) => { span.textContent = this.spec.kind === "bars" && this.at === null ? "" : this.spec.format(shown[index]); });
    this.readout.textContent = this.at === null ? "" : this.spec.axis(this.xs[place]);
    const told = this.spec.series.map(({ label }, index) => `${label} ${this.spec.format(shown[index])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.spec.title}: ${told}${this.at === null ? " at the end" : ` at ${this.readout.textContent}`}`);
    const x = this.x?.(this.xs[place]);
    this.layer?.replaceChildren(...(this.at === null || x === undefined ? [] : [shape("line", { class: "cross", x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom })]));
  }

  #listen() {
    const index = (event) => this.#nearest(event.clientX - this.svg.getBoundingClientRect().left);
    let start = null;
    this.svg.addEventListener("pointerdown", (event) => { start = index(event); });
    this.svg.addEventListener("pointermove", (event) => {
      const at = index(event);
      this.#broadcast(at);
      if (start !== null && start !== at) this.#brush(start, at);
    });
    this.svg.addEventListener("pointerup", (event) => {
      const end = index(event);
      if (start !== null && end !== null && Math.abs(end - start) > 0 && this.spec.onZoom) {
        this.spec.onZoom(...[this.xs[start], this.xs[end]].sort((one, other) => one - other));
      }
      start = null;
    });
    const leave = () => { start = null; this.#broadcast(null); };
    this.svg.addEventListener("pointerleave", leave);
    this.svg.addEventListener("pointercancel", leave);
    this.svg.addEventListener("blur", leave);
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined || !this.xs.length) return;
      event.preventDefault();
      this.#broadcast(Math.min(this.xs.length - 1, Math.max(0, (this.at ?? this.xs.length - 1) + step)));
    });
  }

  #nearest(x) {
    if (!this.xs.length || !this.x) return null;
    let best = 0;
    this.xs.forEach((value, at) => { if (Math.abs(this.x(value) - x) < Math.abs(this.x(this.xs[best]) - x)) best = at; });
    return best;
  }

  #brush(from, to) {
    const [left, right] = [this.x(this.xs[from]), this.x(this.xs[to])].sort((one, other) => one - other);
    this.layer.append(shape("rect", { class: "brush", x: left, width: right - left, y: EDGE.top, height: HEIGHT - EDGE.top - EDGE.bottom }));
  }

  // Charts over the same axis point at the same place.
  #broadcast(at) {
    for (const chart of all) if (chart === this || (this.spec.group && chart.spec.group === this.spec.group)) chart.point(at);
  }
}

function stacked(data) {
  let base = data[0]?.mean.map(() => 0) ?? [];
  return data.map(({ mean }) => {
    const top = base.map((value, at) => (mean[at] === null ? null : Math.min(1, value + mean[at])));
    const made = { base, mean: top };
    base = top.map((value) => value ?? 0);
    return made;
  });
}

function powers(low, high) {
  const [from, to] = [Math.floor(Math.log10(Math.max(low, 1))), Math.ceil(Math.log10(Math.max(high, 1)))];
  const every = Math.max(1, Math.ceil((to - from) / 4));
  const found = [];
  for (let power = from; power <= to; power += every) if (10 ** power >= low * 0.999 && 10 ** power <= high * 1.001) found.push(10 ** power);
  return found.length > 1 ? found : [low, high];
}
