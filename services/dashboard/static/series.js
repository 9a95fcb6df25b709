// Numbers of a run as they grow. Only the buckets that are new travel.

import { ask } from "./transport.js";

export class History {
  constructor(path) { this.path = path; this.of = ""; this.held = null; }

  // The window for these parameters, whole.
  async window(parameters) {
    const of = JSON.stringify(parameters);
    const held = of === this.of ? this.held : null;
    const got = await ask(this.path, { ...parameters, mark: held?.mark, have: held?.complete });
    this.of = of;
    this.held = got.first_bucket ? joined(held, got) : got;
    return this.held;
  }
}

function joined(held, got) {
  const before = (name, kind) => held.columns[name]?.[kind]?.slice(0, got.first_bucket) ?? Array(got.first_bucket).fill(null);
  const columns = Object.entries(got.columns).map(([name, band]) =>
    [name, Object.fromEntries(Object.entries(band).map(([kind, values]) => [kind, values && [...before(name, kind), ...values]]))]);
  return { ...got, columns: Object.fromEntries(columns) };
}
