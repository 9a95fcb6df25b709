// What people want of the run: the controls, the questions before what cannot be undone, and the requests as they stand.

import { byId, element, say } from "./format.js";
import { attempt } from "./toast.js";
import { ask, request } from "./transport.js";

const VERSIONS_EVERY_MS = 5000;

const DOUBTED = 16; // generators that are asked about before they are started

let editing = false, versionsAt = 0, versionsOf = "", newest = 0, chosen = "", paused = false, over = false;

export function show(requests, status) {
  paused = requests.paused;
  if (over) again();
  byId("pause").hidden = requests.paused;
  byId("resume").hidden = !requests.paused && !requests.stop_after_round;
  say(byId("resume"), requests.paused ? "Resume" : "Do not stop");
  byId("stop").disabled = requests.stop_after_round;
  byId("checkpoint").disabled = requests.checkpoint;
  const living = status.generators.filter((generator) => !generator.lost).length;
  const target = requests.generators_target;
  if (!editing) byId("count").value = target ?? living;
  const notes = [];
  if (requests.stop_after_round) notes.push("The run ends when this round is durable.");
  if (requests.checkpoint) notes.push(paused ? "A checkpoint is being written." : "A checkpoint is written when this round is done.");
  if (requests.rollback_to !== null) notes.push(`The run goes back to version ${requests.rollback_to} when this round is done.`);
  if (target !== null && target !== living) notes.push(`${target} generators are wanted, ${living} ${living === 1 ? "is" : "are"} alive.`);
  say(byId("requests"), notes.join(" "));
  newest = status.weight_version;
  const mark = `${newest} ${status.learner?.state}`;
  if (mark !== versionsOf && performance.now() >= versionsAt) {
    versionsAt = performance.now() + VERSIONS_EVERY_MS;
    versionsOf = mark;
    attempt(showVersions);
  }
}

const controls = () => document.querySelectorAll(".steering button, .steering input, .steering select, .bottleneck button");

// The run takes no more requests.
export function end() {
  over = true;
  for (const control of controls()) control.disabled = true;
}

function again() {
  over = false;
  for (const control of controls()) control.disabled = false;
  showTarget();
}

// The newest version is chosen until a person chooses another one; a list that is open is left alone.
async function showVersions() {
  const versions = await ask("v1/versions");
  const select = byId("target");
  if (document.activeElement === select && select.options.length) return;
  select.replaceChildren(...versions.map(({ weight_version: version, checkpointed }) =>
    element("option", { value: version, "data-checkpoint": checkpointed && "" }, checkpointed ? `${version}, checkpoint` : String(version))));
  if (versions.some((version) => String(version.weight_version) === chosen)) select.value = chosen;
  showTarget();
}

function showTarget() {
  const option = byId("target").selectedOptions[0];
  byId("export").disabled = !option;
  const isEarlier = option && Number(option.value) < newest;
  byId("rollback").disabled = !(isEarlier && option.hasAttribute("data-checkpoint"));
}

function confirmed(question, consequence, yes) {
  say(byId("question"), question);
  say(byId("consequence"), consequence);
  say(byId("yes"), yes);
  const dialog = byId("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function stop() {
  const sure = await confirmed("Stop after this round?",
    "The run ends when the round is durable. It can be started again from there, but only on the machine that ran it.", "Stop the run");
  if (sure) await attempt(() => request("stop"), "The run ends after this round.");
}

async function scale(target) {
  if (!Number.isInteger(target) || target < 0) return;
  const none = target > 0 || await confirmed("No generators?", "Nothing is sampled until there is one again; the learner waits.", "Run none");
  const sure = none && (target <= DOUBTED || await confirmed(`${target} generators?`,
    "Each takes a GPU, or a share of this machine's memory and cores. Too many make the run slower, or end it for want of memory.", `Run ${target}`));
  if (sure) await attempt(() => request("generators", { generators_target: target }), `${target} generators are wanted now.`);
  editing = false;
}

async function rollBack(version) {
  const sure = await confirmed(`Go back to version ${version}?`,
    `Every later version up to ${newest}, its checkpoint and its records are given up, and its rounds are sampled anew. This cannot be undone; export a version to keep it.`,
    `Go back to ${version}`);
  if (sure) await attempt(() => request("rollback", { weight_version: version }), `The run goes back to version ${version} after this round.`);
}

function exportVersion(version) {
  attempt(() => request("export", { weight_version: version }), `Version ${version} is being written into the run's exports folder; Messages says when it is there.`);
}

export function listen() {
  byId("pause").addEventListener("click", () => attempt(() => request("pause"), "The run pauses after this round."));
  byId("resume").addEventListener("click", () => attempt(() => request("resume"), "The run goes on."));
  byId("checkpoint").addEventListener("click", () =>
    attempt(() => request("checkpoint"), paused ? "A checkpoint is written now." : "A checkpoint is written after this round."));
  byId("stop").addEventListener("click", stop);
  const count = byId("count");
  const step = (by) => { editing = true; count.value = Math.max(0, Number(count.value) + by); };
  byId("fewer").addEventListener("click", () => step(-1));
  byId("more").addEventListener("click", () => step(1));
  count.addEventListener("input", () => { editing = true; });
  byId("scale").addEventListener("submit", (event) => { event.preventDefault(); scale(count.valueAsNumber); });
  byId("suggest").addEventListener("click", () => scale(Number(byId("suggest").dataset.count)));
  const target = byId("target");
  target.addEventListener("change", () => { chosen = target.value; showTarget(); });
  byId("export").addEventListener("click", () => exportVersion(Number(target.value)));
  byId("versioned").addEventListener("submit", (event) => { event.preventDefault(); rollBack(Number(target.value)); });
  showTarget();
}
