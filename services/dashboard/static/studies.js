// The reports of studies: what each method scored, with intervals, and what became of the claims.

import { byId, element, number, table } from "./format.js";
import { ask } from "./transport.js";

const SVG = "http://www.w3.org/2000/svg";
const VERDICTS = { holds: "good", "does not hold": "bad", undecided: "warn" };
const ROW = 30, LABEL = 280, WIDTH = 760, VALUE = 110;

let shown = "";

export async function showReports() {
  const reports = await ask("v1/reports");
  const text = JSON.stringify(reports);
  if (text === shown) return;
  shown = text;
  byId("reports").replaceChildren(...(reports.length ? reports.map(report) : [element("p", { class: "note" }, "There is no report of a study below these folders.")]));
}

function report({ title, folder, methods, claims }) {
  const found = Object.values(methods);
  const scores = Object.keys(found[0]?.means ?? {});
  const columns = [{ label: "method", wide: true }, { label: "tau_eval", number: true }, { label: "seeds", number: true }, ...scores.map((label) => ({ label, number: true }))];
  const rows = found.map((method) => [method.label, number(method.temperature), String(Object.keys(method.seeds).length), ...scores.map((score) => interval(method.means[score]))]);
  const made = element("article", { class: "card", "aria-label": title }, element("h3", {}, title), element("p", { class: "note" }, folder),
    bars(title, found), table(columns, rows, `Scores of ${title}`));
  if (claims?.length) made.append(table(
    [{ label: "claim", long: true }, { label: "difference of AVG", number: true }, { label: "verdict" }],
    claims.map(({ claim, difference, verdict }) => [claim, interval(difference), element("span", { class: "pill", "data-tone": VERDICTS[verdict] }, verdict)]), `Claims of ${title}`));
  return made;
}

function interval(value) {
  if (!value || value.mean === null) return "–";
  return value.low === null || value.low === value.high ? value.mean.toFixed(1) : `${value.mean.toFixed(1)} (${value.low.toFixed(1)} to ${value.high.toFixed(1)})`;
}

// A bar for each method, with its interval: names stand beside the bars, where there is room for them.
function bars(title, methods) {
  const values = methods.map(({ label, means }) => ({ label, ...means.AVG })).filter(({ mean }) => Number.isFinite(mean));
  const height = values.length * ROW + 4;
  const told = values.map(({ label, mean }) => `${label} ${mean.toFixed(1)} %`).join(", ");
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", class: "bars", "aria-label": `AVG of ${title}: ${told}` });
  const x = (value) => LABEL + (Math.min(100, Math.max(0, value)) / 100) * (WIDTH - LABEL - VALUE);
  values.forEach(({ label, mean, low, high }, at) => {
    const y = at * ROW + 4;
    const name = shape("text", { x: LABEL - 8, y: y + 15, "text-anchor": "end" }, label.length > 44 ? `${label.slice(0, 43)}…` : label);
    name.append(shape("title", {}, label));
    drawing.append(name, shape("rect", { class: "c0", x: LABEL, y, width: x(mean) - LABEL, height: ROW - 10, rx: 3 }), shape("text", { x: x(Math.max(mean, high ?? mean)) + 8, y: y + 15 }, `${mean.toFixed(1)} %`));
    if (Number.isFinite(low) && Number.isFinite(high)) drawing.append(shape("path", { class: "whisker", d: `M${x(low)},${y + 10}H${x(high)}M${x(low)},${y + 4}v12M${x(high)},${y + 4}v12` }));
  });
  return drawing;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
