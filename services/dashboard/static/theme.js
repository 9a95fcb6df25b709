// Light, dark, or as the system says; remembered in the browser.

import { byId, say } from "./format.js";

export function theme() {
  const order = ["auto", "light", "dark"];
  const apply = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    say(byId("theme"), `Theme: ${name}`);
  };
  let chosen = order.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto";
  apply(chosen);
  byId("theme").addEventListener("click", () => {
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    localStorage.setItem("theme", chosen);
    apply(chosen);
  });
}
