// Numbers, times and sizes as people read them, and small helpers to put them on the page.

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(digits - 2).replace(/\.?0+e/, "e");
  if (size >= 1e6) return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: digits });
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 4 : digits });
}

export function percent(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return `${(100 * value).toFixed((value !== 0 && Math.abs(value) < 0.1 ? 1 : 0) + digits - 3)} %`;
}

export function bytes(count, digits = 3) {
  if (count === null || count === undefined || !Number.isFinite(count)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${count.toFixed((at === 0 || count >= 100 ? 0 : 1) + digits - 3)} ${units[at]}`;
}

export function duration(seconds, digits = 3) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const more = digits - 3;
  if (seconds < 10) return `${seconds.toFixed(1 + more)} s`;
  if (seconds < 120) return `${seconds.toFixed(more)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(more)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1 + more)} h`;
  return `${(seconds / 86400).toFixed(1 + more)} days`;
}

export function clock(seconds) {
  if (!seconds) return "–";
  const at = new Date(seconds * 1000);
  const day = at.toDateString() === new Date().toDateString() ? {} : { month: "short", day: "numeric" };
  return at.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export const sentence = (name) => `${name[0].toUpperCase()}${words(name.slice(1))}`;
export const words = (name) => name.replaceAll("_", " ");
// Whether the page is made of the run's folder alone, as `sept page` does.
export const isRecorded = "recorded" in document.documentElement.dataset;
export const byId = (id) => document.getElementById(id);

// Writes only what changed, so that a selection or a screen reader is left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// element("p", { class: "note" }, "text", child)
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// columns: [{ label, number, wide, long }]; rows: arrays of text or nodes. On a phone each row becomes a card.
export function table(columns, rows, caption) {
  const classes = (column) => ["number", "wide", "long"].filter((name) => column[name]).join(" ") || null;
  const head = columns.map((column) => element("th", { scope: "col", class: classes(column) }, column.label));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, at) =>
    element("td", { class: classes(columns[at]), "data-label": columns[at].label }, cell))));
  const made = element("table", { "aria-label": caption }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  return element("div", { class: "table stacks", tabindex: "0", role: "group", "aria-label": `${caption}, scrolls` }, made);
}
