// The table of the parts: what each does, at which version, how its time was spent.

import { byId, bytes, duration, element, number, percent, say, table, words } from "./format.js";

const PART_COLUMNS = [
  { label: "part" }, { label: "state" }, { label: "version", number: true }, { label: "lag", number: true }, { label: "in flight", number: true },
  { label: "tokens/s", number: true }, { label: "time spent", wide: true }, { label: "updates", number: true }, { label: "last update", wide: true },
  { label: "heartbeat", number: true }, { label: "host" }, { label: "device" }, { label: "says", wide: true },
];
// Everything else, such as starting, has the colour of OTHER.
const STATE_COLOURS = { generating: 0, training: 0, evaluating: 7, waiting_for_tasks: 1, waiting_for_rollouts: 1, waiting_for_weights: 3, updating: 2, publishing: 2,
  checkpointing: 5, paused: 6 };
const OTHER = 4;

// Same parts as before: only the changed texts are written. Otherwise the table is made anew.
export function showParts(status) {
  const rows = [];
  const starting = new Map(status.starting.map((part) => [part.part_id, `${part.doing}, ${part.for_s.toFixed(0)} s`]));
  if (status.learner) rows.push(partRow(status.learner, status.learner_lost, null, status, starting));
  for (const generator of status.generators) rows.push(partRow(generator.heartbeat, generator.lost, generator.age_s, status, starting));
  for (const [id, doing] of starting) rows.push({ id, lost: false, shares: {}, cells: PART_COLUMNS.map((_, at) => [id, doing][at] ?? (at === 6 ? "" : "–")) });
  const ids = rows.map((row) => row.id).join(" ");
  const holder = byId("parts");
  if (holder.dataset.ids !== ids) {
    holder.dataset.ids = ids;
    const cells = rows.map((row) => row.cells.map((text, at) => (at === 6 ? element("div", { class: "shares", role: "img" }) : text)));
    holder.replaceChildren(table(PART_COLUMNS, cells, "Parts"));
  }
  holder.querySelectorAll("tbody tr").forEach((made, index) => fill(made, rows[index]));
  showKey(rows);
}

// Says what the colours of the time spent mean, for the states that there are.
function showKey(rows) {
  const states = [...new Set(rows.flatMap(({ shares }) => Object.keys(shares).filter((state) => shares[state] > 0.001)))].sort();
  const key = byId("key");
  if (key.dataset.of === states.join()) return;
  key.dataset.of = states.join();
  key.replaceChildren(...(states.length ? ["Time spent: "] : []), ...states.map((state) => element("span", {}, element("i", { class: `c${STATE_COLOURS[state] ?? OTHER}` }), words(state))));
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
    const piece = element("i", { class: `c${STATE_COLOURS[state] ?? OTHER}` });
    piece.style.width = `${100 * share}%`;
    return piece;
  }));
}

// Takes the part out of those that start, so that those left have no heartbeat yet.
function partRow(beat, silent, age, status, starting) {
  const doing = starting.get(beat.part_id), lost = silent && !doing;
  starting.delete(beat.part_id);
  const version = beat.weight_version;
  const lag = version === null || status.weight_version === null || beat.part === "learner" ? "–" : String(Math.max(0, status.weight_version - version));
  const update = beat.updates ? `${duration(beat.sync_s)}, ${bytes(beat.sync_bytes)}, paused ${number(beat.pause_ms)} ms` : "–";
  const cells = [
    beat.part_id, lost ? "lost" : doing ?? words(beat.state), version === null || version < 0 ? "–" : String(version), lag, number(beat.in_flight), number(beat.tokens_per_s),
    "", beat.part === "learner" ? "–" : number(beat.updates), update, age === null ? "–" : `${age.toFixed(age < 10 ? 1 : 0)} s ago`, beat.host, beat.device, beat.message || (beat.chat_url && `answers chat at ${beat.chat_url}`) || "–",
  ];
  return { id: beat.part_id, lost, shares: beat.shares, cells };
}
