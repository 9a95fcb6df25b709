// The history charts and the rows of the parts. Which numbers are shown, and in which words.

import { Chart } from "./chart.js";
import { byId, bytes, clock, duration, element, number, percent, say, table, words } from "./format.js";
import { ask } from "./transport.js";

const ROUND = { group: "round", axis: (round) => number(round) };
const TIME = { group: "time", axis: clock };

// A round is timed from record to record, its training from its start: only several together give honest shares.
const TOGETHER = 10;

// [column, label, colour, divided by this column]
const ROUND_CHARTS = [
  { title: "Loss", unit: "nats per token", series: [["loss", "loss", 0]] },
  { title: "Sampling temperature", unit: "tau_s", series: [["tau_s", "tau_s", 3]] },
  { title: "Response length", unit: "tokens, mean", series: [["response_length_mean", "length", 0]] },
  { title: "Truncated responses", unit: "share", format: percent, series: [["truncated_ratio", "truncated", 1]] },
  { title: "Throughput", unit: "tokens/s", series: [["generator_tokens_per_s", "generators", 0], ["learner_tokens_per_s", "learner", 1]] },
  { title: "Learner's time", unit: `share of ${TOGETHER} rounds`, kind: "stack", format: percent,
    series: [["train_s", "training", 0, "round_s"], ["learner_wait_s", "waiting", 1, "round_s"]] },
  { title: "Staleness", unit: "versions", series: [["staleness_mean", "mean", 0], ["staleness_max", "greatest", 1]] },
  { title: "Spanning rollouts", unit: "share with tokens of several versions", format: percent, series: [["spanning_rollouts", "spanning", 2, "rollouts"]] },
  { title: "Bytes per update", unit: "log scale", log: true, format: bytes, series: [["sync_bytes", "fetched", 0], ["sync_full_bytes", "whole model", 4]] },
  { title: "Pause per update", unit: "ms, longest", series: [["pause_ms", "pause", 1]] },
  { title: "Round and publish time", unit: "s", series: [["round_s", "round", 0], ["publish_s", "publish", 2]] },
  { title: "Gradient norm", unit: "", series: [["grad_norm", "norm", 2]] },
  { title: "Learning rate", unit: "", series: [["learning_rate", "rate", 3]] },
];
const QUEUE_CHARTS = [
  { title: "Queues", unit: "entries", series: [["tasks_queued", "tasks queued", 0], ["tasks_leased", "leased", 1], ["rollouts_queued", "rollouts held", 2]] },
  { title: "Oldest open task", unit: "s", format: duration, series: [["oldest_task_s", "age", 1]] },
  { title: "Busy", unit: "share of looks", format: percent, series: [["generators_busy", "generators", 0], ["learner_busy", "learner", 1]] },
  { title: "Generators", unit: "", series: [["generators", "alive", 0], ["generators_lost", "lost", 1]] },
];
const NO_CHART = new Set(["schema_version", "round", "weight_version", "epoch", "rollouts", "prompt_tokens", "response_tokens", "time", "tasks_reissued"]);

// "pass@8 math500, 0.6": one chart a k, a line a benchmark and temperature; pass@1 is the first chart of all.
const MEASURED = /^pass@(\d+) (.+)$/;

function quality(window) {
  const byK = new Map();
  for (const name of Object.keys(window.columns)) {
    const [, k, of] = name.match(MEASURED) ?? [];
    if (k) byK.set(Number(k), [...(byK.get(Number(k)) ?? []), [name, of.replace(/, ([^,]+)$/, " (tau $1)")]]);
  }
  const ks = [...byK.keys()].sort((one, other) => one - other);
  return ks.filter((k, at) => at === 0 || at === ks.length - 1).map((k) => ({
    title: `Quality: pass@${k}`, unit: "share of problems, by evaluation", format: percent, sparse: true,
    series: byK.get(k).map(([name, of], at) => [name, of, at % 5]),
  }));
}

const drawn = new Map();
const range = { round: {}, time: {} };
let last = 0, recorded = 0;

function chart(spec, onZoom) {
  const of = spec.series.map(([name]) => name).join();
  const known = drawn.get(spec.title);
  if (known?.of === of) return known.chart;
  known?.chart.remove(); // another benchmark is measured now
  const series = spec.series.map(([, label, colour]) => ({ label, colour }));
  const made = new Chart(byId("charts"), { ...spec, series, onZoom }, spec.sparse);
  drawn.set(spec.title, { of, chart: made });
  return made;
}

function column(window, [name, , , over]) {
  const none = { mean: [] };
  const top = window.columns[name] ?? none;
  if (!over) return { ...top, newest: window.newest?.[name] };
  const below = window.columns[over]?.mean ?? [];
  const sum = (values, at) => values.slice(Math.max(0, at + 1 - TOGETHER), at + 1).reduce((whole, value) => whole + (value ?? 0), 0);
  return { mean: top.mean.map((_, at) => (sum(below, at) > 0 ? Math.min(1, sum(top.mean, at) / sum(below, at)) : null)) };
}

function show(specs, window, key, base, zoom) {
  const { mean = [], low = mean, high = mean } = window.columns[key] ?? {};
  const xs = mean.map((middle, at) => (at === 0 ? (low ?? mean)[0] : at === mean.length - 1 ? (high ?? mean)[at] : middle)); // exact ends
  for (const spec of specs) chart({ ...base, ...spec }, zoom).show(xs, spec.series.map((one) => column(window, one)));
  return xs;
}

// Columns that this page does not know (an evaluation's, a later release's) get a chart of their own.
function others(window) {
  const known = new Set(ROUND_CHARTS.flatMap(({ series }) => series.flatMap(([name, , , over]) => [name, over])));
  return Object.keys(window.columns).filter((name) => !known.has(name) && !NO_CHART.has(name) && !MEASURED.test(name))
    .map((name) => ({ title: sentence(name), unit: "", series: [[name, words(name), 2]] }));
}

const sentence = (name) => `${name[0].toUpperCase()}${words(name.slice(1))}`;

export async function refreshRounds() {
  const chosen = last ? { from: Math.max(0, recorded - last) } : range.round;
  const window = await ask("/v1/rounds", chosen);
  recorded = window.lines;
  const xs = show([...quality(window), ...ROUND_CHARTS, ...others(window)], window, "round", ROUND, zoomRounds);
  const stretch = xs.length ? `Rounds ${number(xs[0])} to ${number(xs.at(-1))}` : "No round is recorded yet";
  const joined = window.per_bucket > 1 ? `, ${window.per_bucket} to a point (line: mean, band: least to greatest)` : "";
  say(byId("shown"), `${stretch}${joined}. Drag over a chart to zoom.`);
}

export async function refreshQueue() {
  const window = await ask("/v1/queue", range.time);
  show(QUEUE_CHARTS, window, "time", TIME, zoomTime);
  const counts = Object.entries(await ask("/v1/staleness"));
  chart(STALENESS_CHART).show(counts.map(([staleness]) => Number(staleness)), [{ mean: counts.map(([, count]) => count) }]);
}

function zoomRounds(from, to) {
  range.round = { from, to };
  last = 0;
  press(null);
  refreshRounds();
}

function zoomTime(from, to) {
  range.time = { from, to };
  press(null);
  refreshQueue();
}

function press(chosen) {
  for (const button of document.querySelectorAll("[data-last]")) button.setAttribute("aria-pressed", String(button === chosen));
}

const STALENESS_CHART = { title: "Staleness, newest round", unit: "rollouts by versions behind", kind: "bars", series: [["", "rollouts", 0]] };

// All charts but those of evaluations are there from the start, in this order, whatever answers first.
export function listen() {
  for (const spec of ROUND_CHARTS) chart({ ...ROUND, ...spec }, zoomRounds);
  chart(STALENESS_CHART);
  for (const spec of QUEUE_CHARTS) chart({ ...TIME, ...spec }, zoomTime);
  for (const button of document.querySelectorAll("[data-last]")) {
    button.addEventListener("click", () => {
      last = Number(button.dataset.last);
      range.round = {}; range.time = {};
      press(button);
      refreshRounds();
      refreshQueue();
    });
  }
}

const PART_COLUMNS = [
  { label: "part" }, { label: "state" }, { label: "version", number: true }, { label: "lag", number: true }, { label: "in flight", number: true },
  { label: "tokens/s", number: true }, { label: "time spent", wide: true }, { label: "updates", number: true }, { label: "last update", wide: true },
  { label: "heartbeat", number: true }, { label: "host" }, { label: "device" }, { label: "says", wide: true },
];
const STATE_COLOURS = { generating: 0, training: 0, waiting_for_tasks: 1, waiting_for_rollouts: 1, waiting_for_weights: 3, updating: 2, publishing: 2, checkpointing: 3 };

// Same parts as before: only the changed texts are written. Otherwise the table is made anew.
export function showParts(status) {
  const rows = [];
  if (status.learner) rows.push(partRow(status.learner, status.learner_lost, null, status));
  for (const generator of status.generators) rows.push(partRow(generator.heartbeat, generator.lost, generator.age_s, status));
  const ids = rows.map((row) => row.id).join(" ");
  const holder = byId("parts");
  if (holder.dataset.ids !== ids) {
    holder.dataset.ids = ids;
    const cells = rows.map((row) => row.cells.map((text, at) => (at === 6 ? element("div", { class: "shares", role: "img" }) : text)));
    holder.replaceChildren(table(PART_COLUMNS, cells, "Parts"));
  }
  holder.querySelectorAll("tbody tr").forEach((made, index) => fill(made, rows[index]));
}

function fill(made, row) {
  made.dataset.part = row.id;
  made.toggleAttribute("data-lost", row.lost);
  row.cells.forEach((text, at) => { if (at !== 6) say(made.cells[at], text); });
  const bar = made.cells[6].firstElementChild;
  const shares = Object.entries(row.shares).filter(([, share]) => share > 0.001);
  const told = shares.map(([state, share]) => `${words(state)} ${percent(share)}`).join(", ");
  if (bar.title === told) return;
  bar.title = told;
  bar.setAttribute("aria-label", told);
  bar.replaceChildren(...shares.map(([state, share]) => {
    const piece = element("i", { class: `c${STATE_COLOURS[state] ?? 4}` });
    piece.style.width = `${100 * share}%`;
    return piece;
  }));
}

function partRow(beat, lost, age, status) {
  const version = beat.weight_version;
  const lag = version === null || status.weight_version === null || beat.part === "learner" ? "–" : String(Math.max(0, status.weight_version - version));
  const update = beat.updates ? `${duration(beat.sync_s)}, ${bytes(beat.sync_bytes)}, paused ${number(beat.pause_ms)} ms` : "–";
  const cells = [
    beat.part_id, lost ? "lost" : words(beat.state), version === null || version < 0 ? "–" : String(version), lag, number(beat.in_flight), number(beat.tokens_per_s),
    "", beat.part === "learner" ? "–" : number(beat.updates), update, age === null ? "–" : `${age.toFixed(age < 10 ? 1 : 0)} s ago`, beat.host, beat.device, beat.message || (beat.chat_url && `answers chat at ${beat.chat_url}`) || "–",
  ];
  return { id: beat.part_id, lost, shares: beat.shares, cells };
}
