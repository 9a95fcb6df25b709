// The list of runs, and which view of `sept page` is open.

import { link, read } from "./address.js";
import * as compare from "./compare.js";
import { byId, clock, element, number, percent, say, table } from "./format.js";
import { showReports } from "./studies.js";
import { theme } from "./theme.js";
import { attempt } from "./toast.js";
import { ask } from "./transport.js";

const AGAIN_MS = 5000;
const TONES = { running: "good", finished: "good", paused: "warn", starting: "warn", stopped: "warn", failed: "bad" };
const MOST_SETTINGS = 8; // columns of settings that differ; all of them are under Compare
const VIEWS = { runs: "runs", compare: "compare-view", studies: "studies" };

const chosen = new Set();
let shown = "";

async function showRuns() {
  const runs = await ask("v1/runs");
  const text = JSON.stringify(runs);
  if (text === shown) return;
  shown = text;
  const names = Object.keys(runs[0]?.differing ?? {}).filter((name) => runs.some((run) => run.differing[name] !== null));
  const columns = [{ label: "compare" }, { label: "run", wide: true }, { label: "state" }, { label: "rounds", number: true }, { label: "best pass@1", number: true },
    { label: "last change" }, ...names.slice(0, MOST_SETTINGS).map((label) => ({ label })), { label: "why", long: true }];
  const rows = runs.map((run) => [
    choice(run), element("a", { href: `runs/${run.key}/`, title: run.folder }, run.run_id), element("span", { class: "pill", "data-tone": TONES[run.state] }, run.state),
    run.rounds_total ? `${number(run.round)} of ${number(run.rounds_total)}` : number(run.round),
    run.best ? element("span", { title: `${run.best.benchmark}, temperature ${run.best.temperature}` }, percent(run.best.value, 4)) : "–",
    clock(run.changed_at), ...names.slice(0, MOST_SETTINGS).map((name) => compare.setting(run.differing[name])), run.detail || "–",
  ]);
  byId("list").replaceChildren(runs.length ? table(columns, rows, "Runs") : "");
  const more = names.length > MOST_SETTINGS ? `; ${names.length - MOST_SETTINGS} more settings differ, choose runs to compare them` : "";
  say(byId("counted"), runs.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}${more}.` : "There is no run below these folders. Start one with: sept run CONFIG");
}

function choice(run) {
  const box = element("input", { type: "checkbox", "aria-label": `Compare ${run.run_id}` });
  box.checked = chosen.has(run.key);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(run.key); else chosen.delete(run.key);
    byId("compare").disabled = chosen.size === 0;
  });
  return box;
}

function open() {
  const name = read().view;
  const view = name in VIEWS ? name : "runs";
  for (const [one, id] of Object.entries(VIEWS)) byId(id).hidden = one !== view;
  for (const entry of document.querySelectorAll("nav a")) {
    if (entry.hash === `#/${view}`) entry.setAttribute("aria-current", "page"); else entry.removeAttribute("aria-current");
  }
  refresh();
}

function refresh() {
  if (document.hidden) return;
  const shows = { runs: showRuns, compare: compare.show, studies: showReports };
  attempt(shows[read().view] ?? showRuns);
}

theme();
compare.listen();
byId("compare").addEventListener("click", () => { location.hash = link("compare", { runs: [...chosen].join(" ") }); });
addEventListener("hashchange", open);
open();
setInterval(refresh, AGAIN_MS);
