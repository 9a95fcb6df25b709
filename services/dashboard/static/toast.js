// What came of something that a person did, for some seconds.

import { byId, element } from "./format.js";

export function toast(text) {
  const note = element("p", {}, text);
  byId("toast").replaceChildren(note);
  setTimeout(() => note.remove(), 6000);
}

export async function attempt(work, done) {
  try {
    await work();
    if (done) toast(done);
  } catch (error) {
    toast(`That did not work: ${error.message}`);
  }
}
