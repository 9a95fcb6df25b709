// A chart as a picture or as numbers, made in the browser: nothing is sent anywhere.

import { element } from "./format.js";

const PAINT = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity", "font-size", "font-family"];
const MARGIN = 44;

export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A line for each x, with the mean and, where lines are joined, the least and the greatest of each series.
export function asCsv(axis, names, series) {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const kinds = series.map((one) => (one.low ? ["mean", "low", "high"] : ["mean"]));
  const head = [axis, ...names.flatMap(({ label }, at) => (kinds[at] ?? []).map((kind) => (kinds[at].length === 1 ? label : `${label} ${kind}`)))];
  const rows = new Map();
  let before = 1;
  series.forEach((one, at) => {
    one.xs.forEach((x, index) => {
      if (!rows.has(x)) rows.set(x, [x]);
      kinds[at].forEach((kind, offset) => { rows.get(x)[before + offset] = one[kind][index] ?? ""; });
    });
    before += kinds[at].length;
  });
  const lines = [...rows.values()].sort((one, other) => one[0] - other[0]).map((row) => Array.from({ length: head.length }, (_, at) => row[at] ?? ""));
  return new Blob([[head.map(quoted), ...lines].map((row) => row.join(",")).join("\n"), "\n"], { type: "text/csv" });
}

// The drawing with its colours as they are on the page, twice as large, under its title and legend.
export async function asPng(svg, title, names) {
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const copy = svg.cloneNode(true);
  const copies = copy.querySelectorAll("*");
  svg.querySelectorAll("*").forEach((drawn, at) => paint(copies[at], getComputedStyle(drawn)));
  copy.setAttribute("width", 2 * width);
  copy.setAttribute("height", 2 * height);
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = element("canvas", { width: 2 * width, height: 2 * (height + MARGIN) });
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(svg.parentElement);
  pen.scale(2, 2);
  pen.fillStyle = style.backgroundColor;
  pen.fillRect(0, 0, width, height + MARGIN);
  pen.fillStyle = style.color;
  pen.font = `600 14px ${style.fontFamily}`;
  pen.fillText(title, 10, 18);
  pen.font = `12px ${style.fontFamily}`;
  let left = 10;
  const swatches = svg.parentElement.querySelectorAll(".legend i");
  names.forEach(({ label }, at) => {
    pen.fillStyle = getComputedStyle(swatches[at]).backgroundColor;
    pen.fillRect(left, 27, 10, 10);
    pen.fillStyle = style.color;
    pen.fillText(label, left + 14, 37);
    left += 28 + pen.measureText(label).width;
  });
  pen.drawImage(image, 0, MARGIN, width, height);
  URL.revokeObjectURL(image.src);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function paint(copy, style) {
  for (const name of PAINT) copy.setAttribute(name, style.getPropertyValue(name));
  copy.removeAttribute("class");
}
