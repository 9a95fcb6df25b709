// Puts the page together: the state at a glance, and which view is open.

import { read } from "./address.js";
import { byId, duration, number, say } from "./format.js";
import * as overview from "./overview.js";
import { showParts } from "./parts.js";
import * as records from "./records.js";
import * as rollouts from "./rollouts.js";
import * as steering from "./steering.js";
import { theme } from "./theme.js";
import { attempt } from "./toast.js";
import { follow } from "./transport.js";

const ROUNDS_EVERY_MS = 3000;
const QUEUE_EVERY_MS = 10000;
const TONES = { running: "good", finished: "good", paused: "warn", starting: "warn", stopped: "warn", failed: "bad" };
const OVER = new Set(["finished", "failed", "stopped"]);
const VIEWS = {
  overview: () => { overview.apply(); due.rounds = due.queue = 0; if (last.state) refreshCharts(frameSeen); },
  rollouts: () => rollouts.search(),
  versions: records.showVersions,
  settings: records.showSettings,
  messages: records.showMessages,
};

let last = { state: "", detail: "" }, frameSeen = null;
const due = { rounds: 0, queue: 0 };
let seen = "", view = "overview";

// -- the state at a glance ---------------------------------------------------------------------------------------

function onFrame(frame) {
  if (!frame.status) { tone("bad", "unreachable", frame.error); return; }
  const { status, requests, bottleneck } = frame;
  showNext(frame.next_step, frame.live_url);
  last = status;
  frameSeen = frame;
  const lost = status.learner_lost || status.generators.some((generator) => generator.lost);
  tone(lost && status.state === "running" ? "warn" : TONES[status.state], status.state, status.detail);
  const progress = status.rounds_total ? `${Math.floor((100 * status.round) / status.rounds_total)} % ` : "";
  document.title = `${progress}${status.state} · ${status.run_id}`;
  say(byId("run"), status.run_id);
  byId("progress").max = Math.max(1, status.rounds_total);
  byId("progress").value = status.round;
  say(byId("round"), status.rounds_total ? `${number(status.round)} / ${number(status.rounds_total)}` : number(status.round));
  say(byId("version"), status.weight_version === null ? "–" : `${status.weight_version} (${status.weight_digest.slice(0, 6)})`);
  say(byId("left"), status.seconds_left === null ? "–" : `about ${duration(status.seconds_left)}`);
  say(byId("queued"), number(status.tasks_queued));
  say(byId("leased"), number(status.tasks_leased));
  say(byId("held"), number(status.rollouts_queued));
  say(byId("oldest"), duration(status.oldest_task_s));
  say(byId("dead"), number(status.dead_letters));
  if (OVER.has(status.state) || requests === null) steering.end(); else steering.show(requests, status);
  if (bottleneck !== null) showBottleneck(bottleneck);
  showParts(status);
  if (view === "overview") refreshCharts(frame);
}

// What is left when nobody answers: how the run ended, or that it is not known.
function onLost() {
  steering.end();
  if (OVER.has(last.state)) return;
  tone("bad", "disconnected", "Nobody answers; trying again. If the run has ended, sept status and sept page say how.");
  showNext("", "");
}

function showNext(step, url) {
  byId("next").hidden = !step && !url;
  say(byId("command"), step);
  byId("next").dataset.kind = step ? "step" : "live";
  byId("live").href = url || "/";
}

function tone(kind, state, detail) {
  byId("state").dataset.tone = kind ?? "";
  say(byId("state"), state);
  say(byId("detail"), detail);
}

function showBottleneck(bottleneck) {
  const names = { unknown: "Not known yet", generation: "Generation", training: "Training", overlap: "Neither: both wait", balanced: "Nothing: balanced" };
  say(byId("bottleneck"), names[bottleneck.kind]);
  say(byId("reason"), `${bottleneck.reason[0].toUpperCase()}${bottleneck.reason.slice(1)}.`);
  const suggested = bottleneck.suggested_generators;
  byId("suggest").hidden = suggested === null;
  byId("suggest").dataset.count = suggested ?? "";
  say(byId("suggest"), `Run ${suggested} generator${suggested === 1 ? "" : "s"}`);
}

function refreshCharts(frame) {
  const now = performance.now();
  const mark = `${frame.generation} ${frame.recorded}`;
  // The last frame is the last chance: who answers it ends soon after.
  if ((now >= due.rounds || OVER.has(last.state)) && (mark !== seen || due.rounds === 0)) {
    due.rounds = now + ROUNDS_EVERY_MS;
    seen = mark;
    attempt(overview.refreshRounds);
  }
  if (now >= due.queue) { due.queue = now + QUEUE_EVERY_MS; attempt(overview.refreshQueue); }
}

// -- views ------------------------------------------------------------------------------------------------

function open() {
  const name = read().view; // of "#/rollouts": no id of an element, so that nothing scrolls there
  view = name in VIEWS ? name : "overview";
  document.body.dataset.view = view;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  attempt(async () => VIEWS[view]());
}

theme();
if (matchMedia("(max-width: 42rem)").matches) byId("steering").open = false; // charts first on a phone
steering.listen();
overview.listen();
rollouts.listen();
addEventListener("hashchange", open);
open();
follow(onFrame, onLost);
