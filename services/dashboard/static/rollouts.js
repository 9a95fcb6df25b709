// The browser of rollouts: search, answers with their formulas, the versions that sampled them.

import { byId, element, number, say } from "./format.js";
import { withMath } from "./math.js";
import { ask } from "./transport.js";

let next = null, shown = 0, asked = 0;

export function listen() {
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  byId("older").addEventListener("click", () => search(next));
}

export async function search(start = null) {
  const ticket = asked += 1;
  const text = byId("text").value;
  const round = start?.round ?? byId("from").value;
  say(byId("found"), "searching …");
  const found = await ask("v1/rollouts", { text, round, line: start?.line, limit: 30 });
  if (ticket !== asked) return; // another search was started meanwhile
  const cards = found.records.map((record) => card(record, text));
  if (start === null) { byId("records").replaceChildren(...cards); shown = 0; } else byId("records").append(...cards);
  shown += cards.length;
  next = found.next_position;
  byId("older").hidden = next === null;
  say(byId("found"), summary(found));
}

function summary(found) {
  if (found.last_round === null) return "No round is recorded yet.";
  const recorded = `rounds ${found.first_round} to ${found.last_round} are recorded`;
  if (shown === 0 && !next) return `Nothing found; ${recorded}.`;
  return next ? `${shown} shown, there is more from round ${next.round} back; ${recorded}.` : `${shown} found; ${recorded}.`;
}

function card(record, wanted) {
  const fact = (name, value) => element("span", {}, `${name} `, element("b", {}, value));
  const head = element("h3", {}, fact("round", number(record.round)), fact("tau_s", number(record.temperature)),
    fact("NLL", number(record.nll)), fact("tokens", number(record.response_tokens)), fact("ended by", record.finish_reason),
    fact("staleness", number(record.staleness)), fact("by", record.generator_id));
  const evaluated = record.correct === undefined || record.correct === null ? [] : [fact("verdict", record.correct ? "correct" : "wrong")];
  if (record.reward !== undefined && record.reward !== null) evaluated.push(fact("reward", number(record.reward)));
  head.append(...evaluated);
  const children = [head, block("question", record.question, wanted), block("answer", record.answer, wanted), spans(record)];
  if (record.truth) children.push(element("p", { class: "note" }, `reference: ${record.truth}`));
  return element("article", { class: "card record", "aria-label": record.rollout_id }, ...children);
}

function block(kind, text, wanted) {
  const made = element("div", { class: `text ${kind}`, tabindex: "0", role: "group", "aria-label": kind });
  made.append(...(text ? withMath(text, wanted) : [element("span", { class: "note" }, "(no text)")]));
  return made;
}

// One piece per version, as wide as its share of the response's tokens.
function spans(record) {
  const made = element("div", { class: "spans", role: "group", "aria-label": "versions of the response's tokens" });
  record.spans.forEach(([version, start, end], index) => {
    const piece = element("span", { class: `c${index % 5}`, title: `tokens ${start} to ${end - 1}` }, `v${version} · ${end - start}`);
    piece.style.flexGrow = end - start;
    made.append(piece);
  });
  return made;
}
