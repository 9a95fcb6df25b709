// Talks to the services: one stream of frames, queries and control requests. A tab that nobody sees is not connected.
// Addresses are relative: the page of a run is at / of its services, and at /runs/KEY/ of `sept page`.

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return answered(await fetch(query.size ? `${path}?${query}` : path));
}

export async function request(action, body) {
  const options = { method: "POST", headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) };
  return answered(await fetch(`v1/control/${action}`, options));
}

async function answered(response) {
  if (response.status === 401) { location.assign(`/login${location.hash}`); }
  const isJson = (response.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await response.json() : await response.text();
  if (!response.ok) throw new Error(body.error ?? `${response.status}`);
  return body;
}

// onFrame(frame) about once a second; onLost() when the services do not answer. The browser reconnects by itself.
export function follow(onFrame, onLost) {
  let source = null;
  const open = () => {
    source = new EventSource("v1/live");
    source.onmessage = (event) => onFrame(JSON.parse(event.data));
    source.onerror = () => {
      onLost();
      if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(connect, 2000); }
    };
  };
  const connect = () => { if (!document.hidden && source === null) open(); };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; } else connect();
  });
  connect();
}
