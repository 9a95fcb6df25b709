// Several runs in the same charts, and the settings in which they differ.

import { change, read } from "./address.js";
import { Chart, setLook } from "./chart.js";
import { AXES, chartsOfRounds, plain, valuesOf } from "./columns.js";
import { byId, element, say, table } from "./format.js";
import { History } from "./series.js";
import { ask } from "./transport.js";

const COLOURS = 8;
const MOST = 16; // as many lines as can be told apart: eight colours, whole and dashed

const histories = new Map();
const drawn = new Map();
let shownOf = "";

const stretch = () => ({ from: read().values.from, to: read().values.to });

export async function show() {
  const runs = await chosenRuns();
  apply();
  showDifferences(runs);
  const windows = await Promise.all(runs.map(({ key }) => historyOf(key).window(stretch())));
  const axis = AXES[read().values.x] ?? AXES.rounds;
  const of = JSON.stringify([runs.map(({ key }) => key), axis.unit]);
  if (of !== shownOf) clear();
  shownOf = of;
  const names = [...new Set(windows.flatMap((window) => Object.keys(window.columns)))];
  for (const { section, charts } of chartsOfRounds(names)) {
    for (const spec of charts.flatMap(single)) {
      const lines = windows.map((window) => plain(axis.xs(window), valuesOf(window, spec.column), spec.sparse));
      chart(section, spec, runs, axis).show(lines);
    }
  }
}

// The runs that the address names; all of them where it names none.
async function chosenRuns() {
  const runs = await ask("v1/runs");
  const keys = (read().values.runs ?? "").split(" ").filter(Boolean);
  const found = keys.length ? keys.map((key) => runs.find((run) => run.key === key)).filter(Boolean) : runs;
  const left = found.length > MOST ? ` The first ${MOST} of ${found.length}: choose others under Runs.` : "";
  say(byId("compared"), found.length ? `${Math.min(MOST, found.length)} runs.${left} Drag over a chart to zoom, double-click to see all.` : "Choose runs to compare under Runs.");
  return found.slice(0, MOST);
}

function historyOf(key) {
  if (!histories.has(key)) histories.set(key, new History(`runs/${key}/v1/rounds`));
  return histories.get(key);
}

// A chart for each of a chart's numbers: a line is a run here.
function single(spec) {
  return spec.series.map((column) => ({ ...spec, column, kind: "line", title: spec.series.length > 1 ? `${spec.title}: ${column[1]}` : spec.title }));
}

function chart(section, spec, runs, axis) {
  if (drawn.has(spec.title)) return drawn.get(spec.title);
  const series = runs.map(({ run_id: label }, at) => ({ label, colour: at % COLOURS, dashed: at >= COLOURS }));
  const onZoom = axis === AXES.rounds ? (from, to) => { change({ from, to }); show(); } : undefined;
  const onReset = () => { change({ from: "", to: "" }); show(); };
  const made = new Chart(place(section), { ...spec, series, group: "compared", axis: axis.axis, unit_x: axis.unit, onZoom, onReset });
  drawn.set(spec.title, made);
  return made;
}

function place(section) {
  let found = byId("charts").querySelector(`[data-section="${section}"]`);
  if (!found) {
    found = element("section", { class: "group", "data-section": section, "aria-label": section }, element("h3", {}, section), element("div", { class: "charts" }));
    byId("charts").append(found);
  }
  return found.lastElementChild;
}

function clear() {
  for (const chart of drawn.values()) chart.remove();
  drawn.clear();
  byId("charts").replaceChildren();
}

function showDifferences(runs) {
  const names = Object.keys(runs[0]?.differing ?? {}).filter((name) => new Set(runs.map((run) => setting(run.differing[name]))).size > 1);
  const columns = [{ label: "setting" }, ...runs.map(({ run_id: label }) => ({ label }))];
  const rows = names.map((name) => [name, ...runs.map((run) => setting(run.differing[name]))]);
  const text = JSON.stringify([columns, rows]);
  if (byId("differences").dataset.of === text) return;
  byId("differences").dataset.of = text;
  byId("differences").replaceChildren(rows.length ? table(columns, rows, "Settings that differ") : element("p", { class: "note" }, "These runs have the same settings."));
}

export function setting(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return String(Number(value.toPrecision(12)));
  return typeof value === "object" ? value.join(", ") : String(value);
}

function apply() {
  const { x, smooth, log } = read().values;
  byId("axis").value = x in AXES ? x : "rounds";
  byId("smooth").value = smooth ?? 0;
  byId("log").checked = log === "1";
  setLook({ smooth: Math.min(0.99, Number(smooth) || 0), log: log === "1" });
}

export function listen() {
  byId("axis").addEventListener("change", () => { change({ x: byId("axis").value === "rounds" ? "" : byId("axis").value }); show(); });
  byId("smooth").addEventListener("input", () => { change({ smooth: Number(byId("smooth").value) || "" }); apply(); });
  byId("log").addEventListener("change", () => { change({ log: byId("log").checked ? "1" : "" }); apply(); });
}
