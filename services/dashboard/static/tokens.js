// An answer token by token: coloured by how likely the learner found each, or by the version that sampled it. Never by
// colour alone: underlines differ, too, a version's first token names it, and the line below says the numbers.

import { element, number, percent, say } from "./format.js";

const STEPS_PER_NAT = 16; // as learner/monitoring/token_record.py writes them
const FLOOR = 255;
const MAX_COLOURED = 5000;
const LIKELY = [[0.5, "50 % and more"], [0.1, "10 to 50 %"], [0.01, "1 to 10 %"], [0, "below 1 %"]];
const HOW = "Point at a token, or focus the answer and use the arrow keys.";

export function legend(by) {
  if (by === "version") return [element("span", {}, "A version's first token names it.")];
  return LIKELY.map(([, label], band) => element("span", {}, element("i", { class: `token p${band}` }, "token"), ` ${label}`));
}

// The answer and the line about one token; null for a record without its tokens.
export function colouredAnswer(record, by) {
  if (!record.token_lengths || (by === "likelihood" && !record.token_log_probs)) return null;
  const lengths = bytes(record.token_lengths), steps = record.token_log_probs ? bytes(record.token_log_probs) : null;
  const characters = [...record.answer];
  const text = element("div", { class: "text answer tokens", tabindex: "0", role: "group", "aria-label": "answer, token by token" });
  const line = element("p", { class: "note", "aria-live": "polite" }, HOW);
  let at = 0, span = 0;
  for (let index = 0; index < Math.min(lengths.length, MAX_COLOURED); index += 1) {
    while (index >= record.spans[span][2]) span += 1;
    const [version, start] = record.spans[span];
    const piece = characters.slice(at, at += lengths[index]).join("");
    if (by === "version" && index === start) text.append(element("b", { class: `name v${span % 5}` }, `v${version}`));
    if (!piece && index < lengths.length - 1) continue; // a character that the next token completes
    const nats = steps ? 0 - steps[index] / STEPS_PER_NAT : null; // no "-0"
    const look = by === "version" ? `v${span % 5}` : `p${LIKELY.findIndex(([low]) => Math.exp(nats) >= low)}`;
    const token = element("span", { class: `token ${look}` }, piece || "■");
    token.about = `Token ${index + 1} of ${lengths.length}, ${piece ? `“${piece.replaceAll("\n", "↵")}”` : "the end"}: ${likelihood(nats, steps?.[index])}version ${version}.`;
    text.append(token);
  }
  text.append(characters.slice(at).join(""));
  watch(text, line);
  return element("div", { class: "by-token" }, text, line);
}

function likelihood(nats, step) {
  if (nats === null) return "";
  return step === FLOOR ? `log p ${number(nats)} or less, ` : `log p ${number(nats)}, p ${percent(Math.exp(nats))}, `;
}

function watch(text, line) {
  let chosen = null;
  const choose = (token) => {
    if (!token) return;
    chosen?.removeAttribute("data-chosen");
    chosen = token;
    token.setAttribute("data-chosen", "");
    say(line, token.about);
  };
  text.addEventListener("pointerover", (event) => choose(event.target.closest(".token")));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    let to = chosen ? chosen[step] : text.querySelector(".token");
    while (to && !to.matches(".token")) to = to[step];
    choose(to);
    chosen?.scrollIntoView({ block: "nearest" });
  });
}

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
