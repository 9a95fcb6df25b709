// Where an axis has its marks: round numbers, round times, powers of ten.

const DAY = 86400;
const TIME_STEPS = [1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, DAY];

// About `count` round numbers within low .. high.
export function ticks(low, high, count = 4) {
  const rough = (high - low) / Math.max(1, count) || Math.abs(high) || 1;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((candidate) => candidate >= 0.7 * rough);
  return steps(low, high, step, 0);
}

// Round times of the reader's own clock, from Unix seconds.
export function ticksOfTime(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const step = TIME_STEPS.find((candidate) => candidate >= rough) ?? Math.ceil(rough / DAY) * DAY;
  return steps(low, high, step, -60 * new Date(low * 1000).getTimezoneOffset());
}

// Powers of ten; the ends themselves where there are not two of them.
export function ticksOfPowers(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from) / 4));
  const found = [];
  for (let power = from; power <= to; power += every) found.push(10 ** power);
  return found.length > 1 ? found : [low, high];
}

function steps(low, high, step, offset) {
  const found = [];
  for (let at = Math.ceil((low + offset) / step - 1e-9); at * step - offset <= high + step * 1e-6; at += 1) found.push(at * step - offset || 0);
  return found;
}
