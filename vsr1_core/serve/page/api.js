// Calls of the JSON API.

async function answer(response) {
  if (response.ok) return response;
  let detail = `the server answered with status ${response.status}`;
  try {
    const said = (await response.json()).detail;
    detail = typeof said === "string" ? said : said.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ");
  } catch { /* no JSON: the status has to do */ }
  throw new Error(detail);
}

export async function get(path, query = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return (await answer(await fetch(`${path}?${asked}`))).json();
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }))).json();
}

export const of = (dataset, rest) => `/api/datasets/${encodeURIComponent(dataset)}/${rest}`;

const known = new Map();

// What the player has to know of a video; asked for once.
export function facts(dataset, video) {
  const key = `${dataset}\n${video}`;
  if (!known.has(key)) {
    const asked = get(of(dataset, "video"), { id: video });
    asked.catch(() => known.delete(key));
    known.set(key, asked);
  }
  return known.get(key);
}

export const fileOf = (dataset, video, converted) =>
  `${of(dataset, "video/file")}?${new URLSearchParams({ id: video, converted })}`;
export const thumbnailOf = (dataset, video, frame) =>
  `${of(dataset, "video/thumbnail")}?${new URLSearchParams({ id: video, frame })}`;

// Searches; `told(name, data)` is called with each event. EventSource only does GET, so the stream is read by hand.
export async function search(body, told, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await answer(await fetch("/api/search/events", { method: "POST", headers, body: JSON.stringify(body), signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "", hasEnded = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (left + value).split("\n\n");
    left = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
      if (!fields.event) continue;
      hasEnded ||= fields.event === "found" || fields.event === "failed";
      told(fields.event, JSON.parse(fields.data));
    }
  }
  if (!hasEnded) throw new Error("the server went away during the search");
}
