// What is looked at stands in the address, so that a link shows the same: "#/overview?x=tokens&find=loss".

// { view, values }: which view, and its parameters.
export function read() {
  const [view, query] = location.hash.slice(2).split("?");
  return { view, values: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

export function link(view, values = {}) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

// Changes parameters of the present view without a new entry in the browser's history.
export function change(changes) {
  const { view, values } = read();
  history.replaceState(null, "", link(view || "overview", { ...values, ...changes }));
}
