// Parts that several views share: thumbnail strips, a turn of a trace, how rankings moved.

import { facts, thumbnailOf } from "/page/api.js";
import { h, percent, put, seconds, svg } from "/page/dom.js";

const NUM_THUMBNAILS = 8;
const COLOURS = ["#0b6bcb", "#c2600a", "#17764a", "#a3261f", "#7a4cc2", "#0e7c86", "#8a6d00", "#b0307f"];

// Evenly spread stored frames of a video, or of its window `part`; those inside the span are marked.
export function strip(dataset, video, span, part) {
  const place = h("span", { class: "strip", "aria-hidden": "true" });
  const isWithin = (time, limits) => limits && time >= limits[0] - 1e-6 && time <= limits[1] + 1e-6;
  facts(dataset, video).then(({ frames_s: times }) => {
    const all = times.map((_, frame) => frame), shown = all.filter((frame) => isWithin(times[frame], part));
    const from = shown.length ? shown : all, number = Math.min(NUM_THUMBNAILS, from.length);
    const frames = Array.from({ length: number }, (_, at) => from[Math.floor(((at + 0.5) * from.length) / number)]);
    place.classList.toggle("whole", !frames.some((frame) => isWithin(times[frame], span)));
    put(place, frames.map((frame) => h("img", {
      src: thumbnailOf(dataset, video, frame), alt: "", loading: "lazy", class: isWithin(times[frame], span) ? "inside" : null,
      title: seconds(times[frame]),
    })));
  }).catch(() => put(place, h("span", { class: "soft small" }, "no frames")));
  return place;
}

const DECISIONS = { matched: ["yes", "✓ matched"], not_matched: ["no", "✗ not matched"], unknown: ["maybe", "? cannot be read"] };

export function decision(name) {
  const [kind, label] = DECISIONS[name] || ["maybe", name || "no decision"];
  return h("span", { class: `badge ${kind}` }, label);
}

const OUTCOME_KINDS = { found: "yes", never_shown: "maybe", wrong_span: "maybe" };

export function outcome(name, labels) {
  return h("span", { class: `badge ${OUTCOME_KINDS[name] || "no"}` }, (labels && labels[name]) || name || "not evaluated");
}

// The window of a long video that ranks here or was shown; null where the video is searched as a whole.
export const windowOf = (said) => (said && (said.window_start_s ?? null) !== null ? [said.window_start_s, said.window_end_s] : null);

export const spanOf = (said) => (said && said.start_s !== null && said.start_s !== undefined ? [said.start_s, said.end_s] : null);

// One turn: the shown video, the decision, its probability, and what the policy said. `open` shows it in the player.
export function turnCard(dataset, turn, open, rightVideo) {
  const span = spanOf(turn), part = windowOf(turn);
  const name = h("button", { type: "button", class: "break", onclick: () => open(turn) }, `▶ ${turn.video}`);
  const isRight = rightVideo === undefined ? null
    : h("span", { class: "small soft" }, turn.is_right_video ?? turn.video === rightVideo ? "the right video"
      : turn.video === rightVideo ? "another part of the right video" : "another video");
  const surely = turn.matched_probability;
  return h("li", { class: `turn ${turn.decision}` },
    h("div", { class: "row" }, h("h3", {}, `Turn ${turn.turn}`), decision(turn.decision), name, isRight),
    h("div", { class: "row small soft" },
      h("span", {}, `probability of a match ${percent(surely)}`),
      h("span", { class: "bar" }, h("i", { style: { width: `${(surely || 0) * 100}%` } })),
      part && h("span", {}, `window ${seconds(part[0])} to ${seconds(part[1])}`),
      span && h("span", {}, `${seconds(span[0])} to ${seconds(span[1])}`),
      turn.last_rank && h("span", {}, `place ${turn.last_rank} in the last ranking`),
      turn.num_latent_tokens > 0 && h("span", {}, `${turn.num_latent_tokens} soft tokens added`)),
    strip(dataset, turn.video, span, part),
    turn.reasoning && h("p", { class: "says" }, turn.reasoning),
    turn.new_query && h("p", { class: "small" }, `searched anew for: ${turn.new_query}`));
}

const isSame = (left, right) => left.slice(0, right.length).join("\n") === right.slice(0, left.length).join("\n");

// What may be wider than the screen; a keyboard can scroll it.
export const scrolling = (label, ...content) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

// Places of the first videos in each ranking, one column per ranking, as far down as all of them are known. `marked` is
// drawn thick. The last ranking of a search that ended with a match is that of its last turn, and not drawn again. `whose`
// tells two such pictures on one page apart.
export function moves(rankings, marked, whose = "") {
  const columns = rankings.filter((ranking) => ranking.videos.length);
  if (!columns.length) return null;
  if (columns.length > 1 && isSame(columns.at(-1).videos, columns.at(-2).videos)) columns.pop();
  if (columns.length === 1) return h("p", { class: "soft small" }, "There is one ranking: that of the query's own words.");
  const rows = Math.min(8, ...columns.map((column) => column.videos.length));
  const names = [...new Set(columns.flatMap((column) => column.videos.slice(0, rows)))];
  const left = 150, right = 150, width = Math.max(520, left + right + (columns.length - 1) * 120), step = 24, top = 30;
  const x = (at) => left + (at * (width - left - right)) / (columns.length - 1);
  const y = (place) => top + place * step + step / 2;
  const height = top + (rows + 1) * step;
  const placeOf = (column, name) => { const at = column.videos.indexOf(name); return at >= 0 && at < rows ? at : rows; };
  const short = (name) => (name.length > 20 ? `…${name.slice(-19)}` : name);
  const drawn = svg("svg", { class: "moves", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": columns.map((column) => `${column.label}: ${column.videos.slice(0, rows).join(", ")}`).join("; ") });
  columns.forEach((column, at) => drawn.append(svg("text", { x: x(at), y: 14, "text-anchor": "middle", class: "faint" }, column.label)));
  names.forEach((name, number) => {
    const colour = COLOURS[number % COLOURS.length], thick = name === marked ? 4 : 1.8;
    const places = columns.map((column) => placeOf(column, name));
    places.slice(1).forEach((place, at) => {
      if (place === rows && places[at] === rows) return;
      drawn.append(svg("line", { x1: x(at), y1: y(places[at]), x2: x(at + 1), y2: y(place), stroke: colour, "stroke-width": thick,
        "stroke-dasharray": place === rows || places[at] === rows ? "3 4" : null, opacity: name === marked ? 1 : 0.75 }));
    });
    places.forEach((place, at) => { if (place < rows) drawn.append(svg("circle", { cx: x(at), cy: y(place), r: thick + 2, fill: colour })); });
    const first = places[0], last = places.at(-1), bold = name === marked ? "700" : null;
    if (first < rows) drawn.append(svg("text", { x: x(0) - 12, y: y(first) + 4, "text-anchor": "end", "font-weight": bold }, short(name)));
    if (last < rows)
      drawn.append(svg("text", { x: x(columns.length - 1) + 12, y: y(last) + 4, "font-weight": bold }, short(name)));
  });
  return scrolling(`How the ranking moved${whose && `, ${whose}`}`, drawn);
}
