// Which numbers are charts, in which section, under which name and unit, and what is normal for them.

import { bytes, duration, number, percent, sentence, words } from "./format.js";

// A round is timed from record to record, its training from its start: only several together give honest shares.
const TOGETHER = 10;

// series: [column, label, colour, divided by this column]
const SECTIONS = {
  Quality: [
    { title: "Reward", unit: "mean of the round", series: [["reward_mean", "reward", 2]], note: "Rises while the model learns. Only algorithms with a reward have it." },
    { title: "Entropy", unit: "nats per token", series: [["entropy", "entropy", 0]], note: "Falls slowly. Near zero the answers to a question are all the same." },
    { title: "Distinct answers", unit: "share of responses", format: percent, series: [["distinct_ratio", "distinct", 2]], note: "Steady, or falling slowly. A steep fall means that the model gives one answer to everything." },
    { title: "Repetition", unit: "share of 4-grams seen before in the response", format: percent, series: [["repetition_ratio", "repeated", 1]], note: "Steady. A rise means loops inside of answers." },
  ],
  Training: [
    { title: "Loss", unit: "nats per token", series: [["loss", "loss", 0]], note: "Falls, quickly at first. It measures confidence, not correctness." },
    { title: "Negative log-likelihood", unit: "nats per token", series: [["nll_tau_1", "temperature 1", 0], ["nll_tau_s", "tau_s", 3]], note: "Of the round's own responses; falls with the loss." },
    { title: "Gradient norm", unit: "before clipping", series: [["grad_norm", "norm", 2]], note: "Single spikes are normal; a steady rise is not." },
    { title: "Learning rate", unit: "per step", series: [["learning_rate", "rate", 3]], note: "As the settings say." },
  ],
  Sampling: [
    { title: "Sampling temperature", unit: "tau_s", series: [["tau_s", "tau_s", 3]], note: "As the settings say." },
    { title: "Response length", unit: "tokens, mean", series: [["response_length_mean", "length", 0]], note: "Drifts slowly. A jump comes from a changed prompt or from loops." },
    { title: "Truncated responses", unit: "share", format: percent, series: [["truncated_ratio", "truncated", 1]], note: "A few percent. More: raise sampling.max_response_tokens." },
    { title: "Staleness", unit: "versions behind", series: [["staleness_mean", "mean", 0], ["staleness_max", "greatest", 1]], note: "Never more than training.max_staleness." },
    { title: "Spanning rollouts", unit: "share with tokens of several versions", format: percent, series: [["spanning_rollouts", "spanning", 2, "rollouts"]], note: "As many as were being sampled when weights came." },
  ],
  "Weight updates": [
    { title: "Bytes per update", unit: "log scale", log: true, format: bytes, series: [["sync_bytes", "fetched", 0], ["sync_full_bytes", "whole model", 4]], note: "A small part of the whole model." },
    { title: "Pause per update", unit: "ms, longest", series: [["pause_ms", "pause", 1]], note: "Tens of milliseconds; the generators stand still for so long." },
    { title: "Publish time", unit: "s", format: duration, series: [["publish_s", "publish", 2]], note: "Less than a round, with which it overlaps." },
  ],
  Speed: [
    { title: "Throughput", unit: "tokens/s", series: [["generator_tokens_per_s", "generators", 0], ["learner_tokens_per_s", "learner", 1]], note: "Steady after the first round." },
    { title: "Learner's time", unit: `share of ${TOGETHER} rounds`, kind: "stack", format: percent,
      series: [["train_s", "training", 0, "round_s"], ["learner_wait_s", "waiting", 1, "round_s"]], note: "Waiting below 10 % means that there are generators enough." },
    { title: "Round time", unit: "s", format: duration, series: [["round_s", "round", 0]], note: "Steady. The first round pays for the start, one with an evaluation takes longer." },
    { title: "Learner's memory", unit: "most in the round", format: bytes, series: [["peak_memory_bytes", "peak", 4]], note: "Steady after the longest batch was seen." },
  ],
};

const TIME_SECTIONS = {
  "Queues and hosts": [
    { title: "Queues", unit: "entries", series: [["tasks_queued", "tasks queued", 0], ["tasks_leased", "leased", 1], ["rollouts_queued", "rollouts held", 2]], note: "Saw-teeth, one a round." },
    { title: "Oldest open task", unit: "age", format: duration, series: [["oldest_task_s", "age", 1]], note: "About as long as a round. A steady rise: nobody takes the tasks." },
    { title: "Busy", unit: "share of looks", format: percent, series: [["generators_busy", "generators", 0], ["learner_busy", "learner", 1]], note: "Near 100 % for one of them." },
    { title: "Generators", unit: "number", series: [["generators", "alive", 0], ["generators_lost", "lost", 1]], note: "As many alive as are wanted, none lost." },
    { title: "Processor and memory", unit: "share, host of the services", format: percent, series: [["cpu_use", "processor", 0], ["memory_use", "memory", 1]], note: "Memory stays below 90 %." },
    { title: "GPU", unit: "share, mean of the host's GPUs", format: percent, series: [["gpu_use", "busy", 0], ["gpu_memory_use", "memory", 1]], note: "Busy most of the time. Idle GPUs wait: see Learner's time and Busy." },
  ],
};
const NO_CHART = new Set(["schema_version", "round", "weight_version", "epoch", "rollouts", "prompt_tokens", "response_tokens", "tokens", "time",
  "tasks_reissued", "dead_letters"]);

export const SECTION_NAMES = [...Object.keys(SECTIONS), "Other", ...Object.keys(TIME_SECTIONS)];

// "pass@8 math500, 0.6": a chart for the least and one for the greatest k, a line for each benchmark and temperature.
const MEASURED = /^pass@(\d+) (.+), ([^,]+)$/;

function quality(names) {
  const byK = new Map();
  for (const name of names) {
    const [, k, benchmark, temperature] = name.match(MEASURED) ?? [];
    if (k) byK.set(Number(k), [...(byK.get(Number(k)) ?? []), [name, `${benchmark} (tau ${temperature})`]]);
  }
  const ks = [...byK.keys()].sort((one, other) => one - other);
  return ks.filter((_, at) => at === 0 || at === ks.length - 1).map((k) => ({
    title: `Quality: pass@${k}`, unit: "share of problems, by evaluation", format: percent, sparse: true,
    series: byK.get(k).map(([name, of], at) => [name, of, at % 8]), note: "Rises above its first point, the model before training.",
  }));
}

// [{ section, charts }] of the columns of metrics.jsonl; what this page does not know gets a chart of its own under Other.
export function chartsOfRounds(names) {
  const known = new Set(Object.values(SECTIONS).flat().flatMap(({ series }) => series.flatMap(([name, , , over]) => [name, over])));
  const others = names.filter((name) => !known.has(name) && !NO_CHART.has(name) && !MEASURED.test(name))
    .map((name) => ({ title: sentence(name), unit: "", series: [[name, words(name), 2]], ...(name.endsWith("_bytes") ? { format: bytes } : {}) }));
  const found = Object.entries(SECTIONS).map(([section, charts]) => ({ section, charts: charts.filter((chart) => has(chart, names)) }));
  found[0].charts.unshift(...quality(names));
  return [...found, { section: "Other", charts: others }];
}

export function chartsOfQueue(names) {
  return Object.entries(TIME_SECTIONS).map(([section, charts]) => ({ section, charts: charts.filter((chart) => has(chart, names)) }));
}

// Without the xs that have no value, where most have none.
export function plain(xs, values, sparse) {
  if (!sparse) return { xs, ...values };
  const places = xs.map((_, at) => at).filter((at) => values.mean[at] !== null && values.mean[at] !== undefined);
  return { xs: places.map((at) => xs[at]), mean: places.map((at) => values.mean[at]), newest: values.newest };
}

const has = ({ series }, names) => series.some(([name]) => names.includes(name));

// One series of a window as a chart takes it, without its xs.
export function valuesOf(window, [name, , , over]) {
  const top = window.columns[name] ?? { mean: [] };
  if (!over) return { ...top, newest: window.newest?.[name] };
  const below = window.columns[over]?.mean ?? [];
  const sum = (values, at) => values.slice(Math.max(0, at + 1 - TOGETHER), at + 1).reduce((whole, value) => whole + (value ?? 0), 0);
  return { mean: top.mean.map((_, at) => (sum(below, at) > 0 ? Math.min(1, sum(top.mean, at) / sum(below, at)) : null)) };
}

// What the charts of rounds can have along their axis.
export const AXES = {
  rounds: { unit: "round", axis: number, xs: (window) => window.columns.round?.mean ?? [] },
  tokens: { unit: "tokens trained", axis: number, xs: (window) => window.columns.tokens?.mean ?? [] },
  time: { unit: "time since the first round shown", axis: duration, xs: (window) => since(window.columns.time?.mean ?? []) },
};

const since = (times) => times.map((time) => time - times[0]);
