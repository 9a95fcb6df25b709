// The reports of studies: what each method scored, with intervals, and what became of the claims.

import { byId, element, number, table } from "./format.js";
import { ask } from "./transport.js";

const VERDICTS = { holds: "good", "does not hold": "bad", undecided: "warn" };

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
  if (!Number.isFinite(value?.mean)) return "–";
  return !Number.isFinite(value.low) || !Number.isFinite(value.high) || value.low === value.high ? value.mean.toFixed(1) : `${value.mean.toFixed(1)} (${value.low.toFixed(1)} to ${value.high.toFixed(1)})`;
}

// A bar for each method, with its interval; its name stands above it, where there is room for all of it.
function bars(title, methods) {
  const values = methods.map(({ label, means, published }) => ({ ...means.AVG, label, published })).filter(({ mean }) => Number.isFinite(mean));
  const percentOf = (value) => `${Math.min(100, Math.max(0, value))}%`;
  return element("div", { class: "bars", role: "group", "aria-label": `AVG of ${title}` }, ...values.map(({ label, mean, low, high, published }) => {
    const bar = element("i", { class: "c0" });
    bar.style.width = percentOf(mean);
    const track = element("div", { class: "track" }, bar);
    if (Number.isFinite(low) && Number.isFinite(high)) {
      const whisker = element("b", { class: "whisker" });
      whisker.style.left = percentOf(low);
      whisker.style.right = `calc(100% - ${percentOf(high)})`;
      track.append(whisker);
    }
    const compared = Number.isFinite(published) ? ` (published ${published.toFixed(1)} %)` : "";
    return element("div", { class: "method" }, element("span", {}, label), element("strong", {}, `${mean.toFixed(1)} %${compared}`), track);
  }));
}
