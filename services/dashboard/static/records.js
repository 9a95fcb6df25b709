// The views of what is written down: versions, settings, warnings and the audit.

import { byId, bytes, clock, element, isRecorded, number, table, words } from "./format.js";
import { ask } from "./transport.js";

export async function showVersions() {
  const versions = await ask("v1/versions", { limit: 100 });
  const columns = [
    { label: "version", number: true }, { label: "published" }, { label: "digest", wide: true }, { label: "continues", number: true },
    { label: "delta", number: true }, { label: "snapshot", number: true }, { label: "whole model", number: true }, { label: "tensors", number: true },
    { label: "checkpoint" },
  ];
  const size = (version, kind) => bytes(version.files.find((file) => file.kind === kind)?.size_bytes);
  const rows = versions.map((version) => [
    String(version.weight_version), clock(version.created_at),
    element("span", { class: "mono", title: version.digest }, version.digest.slice(0, 16)),
    version.parent_version === null ? "–" : String(version.parent_version),
    size(version, "delta"), size(version, "snapshot"), bytes(version.full_bytes), number(version.tensors),
    version.checkpointed ? "yes" : "–",
  ]);
  byId("store").replaceChildren(rows.length ? table(columns, rows, "Versions") : element("p", { class: "note" }, "No version is published yet."));
}

export async function showSettings() {
  const text = await ask("v1/config");
  const lines = text.split("\n").map((line) => (/^\[.*\]$/.test(line) ? element("b", {}, line) : line));
  const pre = element("pre", { tabindex: "0" });
  lines.forEach((line) => pre.append(line, "\n"));
  byId("config").replaceChildren(pre);
}

export async function showMessages() {
  const [warnings, audit] = await Promise.all([ask("v1/warnings"), isRecorded ? [] : ask("v1/events/last", { kind: "control" })]);
  const columns = [{ label: "when" }, { label: "part" }, { label: "level" }, { label: "message", long: true, wide: true }];
  const rows = warnings.map((warning) => [
    clock(warning.time_s), warning.part, element("span", { class: "pill", "data-tone": warning.level === "error" ? "bad" : "warn" }, warning.level), warning.text,
  ]);
  byId("warnings").replaceChildren(rows.length ? table(columns, rows, "Warnings and errors") : element("p", { class: "note" }, "No part has written a warning or an error."));
  const asked = audit.map((event) => [clock(event.time_s), describe(event.fields), event.fields.client ?? event.source]);
  byId("audit").replaceChildren(asked.length
    ? table([{ label: "when" }, { label: "request", long: true }, { label: "from" }], asked, "What people asked for")
    : element("p", { class: "note" }, isRecorded ? "Known only to the page of the run itself, while it is active." : "Nobody has asked for anything yet."));
}

function describe({ action, generators_target: target, weight_version: version, reason }) {
  const what = action === "generators" ? `${target} generators` : words(action);
  return [what, version === undefined ? "" : ` version ${version}`, reason ? `: ${reason}` : ""].join("");
}
