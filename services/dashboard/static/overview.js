// The charts of one run, in sections, with what a person chose for all of them: stretch, axis, smoothing, scale, search.

import { change, read } from "./address.js";
import { Chart, setLook } from "./chart.js";
import { AXES, chartsOfQueue, chartsOfRounds, plain, SECTION_NAMES, valuesOf } from "./columns.js";
import { byId, clock, element, number, say } from "./format.js";
import { History } from "./series.js";
import { ask } from "./transport.js";

const rounds = new History("v1/rounds"), queue = new History("v1/queue");
const drawn = new Map();
const QUANTUM = 50; // "the last 500" begins at a multiple of it, so that it does not move with each round
let recorded = 0, shownRounds = null;

const STALENESS = { title: "Staleness, newest round", unit: "rollouts by versions behind", kind: "bars", series: [["", "rollouts", 0]],
  note: "At most training.max_staleness behind." };

function section(name) {
  return document.querySelector(`[data-section="${name}"]`);
}

function chart(name, spec) {
  const of = `${spec.series.map(([column]) => column).join()} ${spec.unit_x}`;
  const known = drawn.get(spec.title);
  if (known?.of === of) return known.chart;
  const series = spec.series.map(([, label, colour]) => ({ label, colour }));
  const made = new Chart(section(name).querySelector(".charts"), { ...spec, series });
  if (known) { known.chart.figure.replaceWith(made.figure); known.chart.remove(); } // other series now, in the same place
  drawn.set(spec.title, { of, chart: made });
  return made;
}

function show(found, window, base, xs) {
  for (const { section: name, charts } of found) {
    const before = drawn.size;
    for (const spec of charts) chart(name, { ...base, ...spec }).show(spec.series.map((one) => plain(xs, valuesOf(window, one), spec.sparse)));
    if (drawn.size > before) section(name).querySelector(".charts").prepend(...charts.map(({ title }) => drawn.get(title).chart.figure)); // in their order
  }
  filter();
}

const chosen = () => read().values;

function stretch() {
  const { from, to, last } = chosen();
  if (last) return { from: Math.max(0, Math.floor((recorded - Number(last)) / QUANTUM) * QUANTUM) };
  return { from, to };
}

export async function refreshRounds() {
  if (chosen().last && !recorded) recorded = (await ask("v1/rounds", { buckets: 3 })).lines;
  const window = await rounds.window(stretch());
  recorded = window.lines;
  shownRounds = window.columns.round?.mean ?? [];
  const kind = AXES[chosen().x] ?? AXES.rounds;
  const xs = kind.xs(window);
  const back = (x) => shownRounds[xs.findIndex((one) => one >= x)] ?? shownRounds.at(-1);
  const base = { group: "round", axis: kind.axis, unit_x: kind.unit, onZoom: (from, to) => zoom({ from: back(from), to: back(to), last: "" }), onReset: () => zoom({ from: "", to: "", last: "" }) };
  show(chartsOfRounds(Object.keys(window.columns)), window, base, xs);
  const which = shownRounds.length ? `Rounds ${number(shownRounds[0])} to ${number(shownRounds.at(-1))}` : "No round is recorded yet";
  const joined = window.per_bucket > 1 ? `, ${window.per_bucket} to a point (line: mean, band: least to greatest)` : "";
  say(byId("shown"), `${which}${joined}. Drag over a chart to zoom, double-click to see all.`);
}

export async function refreshQueue() {
  const { since, until } = chosen();
  const window = await queue.window({ from: since, to: until });
  const base = { group: "time", axis: clock, unit_x: "Unix seconds", onZoom: (from, to) => zoom({ since: from, until: to }), onReset: () => zoom({ since: "", until: "" }) };
  show(chartsOfQueue(Object.keys(window.columns)), window, base, window.columns.time?.mean ?? []);
  const counts = Object.entries(await ask("v1/staleness"));
  chart("Sampling", STALENESS).show([{ xs: counts.map(([staleness]) => Number(staleness)), mean: counts.map(([, count]) => count) }]);
  filter();
}

function zoom(changes) {
  change(changes);
  apply();
  refreshRounds();
  refreshQueue();
}

// Shows the charts whose title or unit holds the words that are searched for; a section without any is left out.
function filter() {
  const wanted = (chosen().find ?? "").toLowerCase();
  for (const name of SECTION_NAMES) {
    const figures = [...section(name).querySelectorAll(".chart")];
    for (const figure of figures) figure.hidden = !figure.querySelector("figcaption").textContent.toLowerCase().includes(wanted);
    section(name).hidden = figures.every((figure) => figure.hidden);
  }
  byId("no-charts").hidden = SECTION_NAMES.some((name) => !section(name).hidden);
}

// Brings the controls and all charts to what the address says.
export function apply() {
  const { x, smooth, log, find, from, last } = chosen();
  byId("axis").value = x in AXES ? x : "rounds";
  byId("smooth").value = smooth ?? 0;
  byId("log").checked = log === "1";
  if (document.activeElement !== byId("find")) byId("find").value = find ?? "";
  setLook({ smooth: Math.min(0.99, Number(smooth) || 0), log: log === "1" });
  for (const button of document.querySelectorAll("[data-last]")) button.setAttribute("aria-pressed", String(!from && button.dataset.last === (last ?? "")));
  filter();
}

export function listen() {
  byId("charts").replaceChildren(...SECTION_NAMES.map((name) =>
    element("section", { class: "group", "data-section": name, "aria-label": name, hidden: true }, element("h3", {}, name), element("div", { class: "charts" }))));
  for (const button of document.querySelectorAll("[data-last]")) {
    button.addEventListener("click", () => zoom({ last: button.dataset.last, from: "", to: "", since: "", until: "" }));
  }
  byId("axis").addEventListener("change", () => { change({ x: byId("axis").value === "rounds" ? "" : byId("axis").value }); refreshRounds(); });
  byId("smooth").addEventListener("input", () => { change({ smooth: Number(byId("smooth").value) || "" }); apply(); });
  byId("log").addEventListener("change", () => { change({ log: byId("log").checked ? "1" : "" }); apply(); });
  byId("find").addEventListener("input", () => { change({ find: byId("find").value }); filter(); });
}
