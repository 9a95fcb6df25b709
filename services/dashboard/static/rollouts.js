// The browser of rollouts: what is wanted stands in the address; answers with their formulas and the versions that sampled them.

import { change, link, read } from "./address.js";
import { byId, element, number, say } from "./format.js";
import { withMath } from "./math.js";
import { attempt } from "./toast.js";
import { colouredAnswer, legend } from "./tokens.js";
import { ask } from "./transport.js";

const FIELDS = ["text", "round", "order", "verdict", "ended_by", "version", "temperature", "min_tokens", "max_tokens", "min_reward", "max_reward"];
const PAGE = 30;

let next = null, records = [], asked = 0;

const form = () => byId("search").elements;

export function listen() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ ...Object.fromEntries(FIELDS.map((name) => [name, form()[name].value])), like: "", relation: "" });
    attempt(search);
  });
  byId("clear").addEventListener("click", () => { location.hash = link("rollouts"); });
  byId("colour").addEventListener("change", () => { change({ tokens: byId("colour").value }); draw(); });
  byId("older").addEventListener("click", () => attempt(() => search(next)));
}

export async function search(start = null) {
  const ticket = asked += 1;
  const { values } = read();
  for (const name of FIELDS) form()[name].value = values[name] ?? (name === "order" ? "newest" : "");
  byId("filters").open ||= FIELDS.slice(3).some((name) => values[name]);
  say(byId("found"), "searching …");
  const wanted = Object.fromEntries([...FIELDS, "like", "relation"].map((name) => [name, values[name]]));
  const found = await ask("v1/rollouts", { ...wanted, ...(start ?? {}), limit: PAGE });
  if (ticket !== asked) return; // another search was started meanwhile
  records = start === null ? found.records : [...records, ...found.records];
  draw(start === null ? 0 : records.length - found.records.length);
  byId("records").toggleAttribute("data-beside", values.relation === "group");
  next = found.next_position;
  byId("older").hidden = next === null || (values.order && values.order !== "newest");
  say(byId("found"), summary(found, values));
}

// Draws the cards from that one on.
function draw(from = 0) {
  const { values } = read(), by = values.tokens ?? "";
  byId("colour").value = by;
  byId("legend").replaceChildren(...(by ? legend(by) : []));
  const cards = records.slice(from).map((record) => card(record, values.text ?? "", by));
  if (from) byId("records").append(...cards); else byId("records").replaceChildren(...cards);
}

const RELATIONS = { self: "One rollout", group: "All answers of one group", question: "All answers to one question, newest version first" };

function summary(found, { like, relation, order }) {
  if (found.last_round === null) return "No round is recorded yet.";
  const recorded = `rounds ${found.first_round} to ${found.last_round} are recorded`;
  const of = like ? `${RELATIONS[relation] ?? RELATIONS.self}. ` : "";
  if (!records.length && !next) return `${of}Nothing found; ${recorded}.`;
  const ranked = order && order !== "newest" ? `, ${order} first` : "";
  const back = ranked ? ` of round ${next?.round} and later` : `, there is more from round ${next?.round} back`;
  return `${of}${records.length} shown${ranked}${next ? back : ""}; ${recorded}.`;
}

function card(record, wanted, by) {
  const fact = (name, value) => element("span", {}, `${name} `, element("b", {}, value));
  const known = (name, value, as = number) => (value === undefined || value === null ? [] : [fact(name, as(value))]);
  const related = (relation, text) => element("a", { href: link("rollouts", { like: record.rollout_id, relation, tokens: by }) }, text);
  const head = element("h3", {}, fact("round", number(record.round)), fact("tau_s", number(record.temperature)),
    fact("NLL", number(record.nll)), fact("tokens", number(record.response_tokens)), fact("ended by", record.finish_reason),
    fact("staleness", number(record.staleness)), fact("by", record.generator_id),
    ...known("graded", record.correct, (correct) => (correct ? "right" : "wrong")), ...known("reward", record.reward), ...known("signal", record.signal),
    ...known("class of equal answers", record.class), ...known("vote", record.vote, (won) => (won ? "won" : "lost")));
  const links = element("p", { class: "links" }, related("self", "link"), related("group", "its group"), related("question", "this question at all versions"));
  const children = [head, block("question", record.question, wanted), ...answer(record, wanted, by), spans(record), links];
  if (record.truth) children.push(element("p", { class: "note" }, `reference: ${record.truth}`));
  return element("article", { class: "card record", "aria-label": record.rollout_id }, ...children);
}

function answer(record, wanted, by) {
  const coloured = by ? colouredAnswer(record, by) : null;
  if (coloured || !by) return [coloured ?? block("answer", record.answer, wanted)];
  return [block("answer", record.answer, wanted), element("p", { class: "note" }, "Of this answer the tokens are not recorded.")];
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
