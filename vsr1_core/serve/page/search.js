// The search view: the box, the verdict, the trace as it happens, the ranked videos, and the player.

import { search } from "/page/api.js";
import { h, options, put, seconds } from "/page/dom.js";
import { decision, moves, spanOf, strip, turnCard, windowOf } from "/page/parts.js";
import { Player } from "/page/player.js";

export function searchView(place, asked, { datasets, go }) {
  const player = new Player();
  const box = h("input", { type: "search", name: "q", maxlength: 2000, required: true, autocomplete: "off",
    placeholder: "What happens in the moment you remember?", "aria-label": "What the moment shows, in words", value: asked.get("q") || "" });
  const pick = (name, label) => { const select = h("select", { name }); return [select, h("label", {}, label, select)]; };
  const [dataset, datasetField] = pick("d", "Dataset");
  const [split, splitField] = pick("s", "Videos of");
  const [method, methodField] = pick("m", "Search by");
  const count = h("input", { name: "k", type: "number", min: 1, max: 100, value: asked.get("k") || 5 });
  const turns = h("input", { name: "t", type: "number", min: 1, max: 10, placeholder: "auto", value: asked.get("t") || "" });
  const button = h("button", { class: "main", type: "submit" }, "Search");
  const verdict = h("div", { class: "verdict", role: "status", hidden: true });
  const trace = h("ol", { class: "plain", "aria-live": "polite" });
  const hits = h("ol", { class: "plain" });
  const moved = h("div", { class: "stack" });
  const foot = h("p", { class: "soft small break" });
  const results = h("div", { class: "columns", hidden: true },
    h("div", { class: "stack" }, h("section", { class: "stack ranked" }, h("h2", {}, "Ranked videos"), hits, foot)),
    h("div", { class: "stack" }, player.element,
      h("section", { class: "card stack" }, h("h2", {}, "What the policy was shown"), trace),
      h("section", { class: "card stack" }, h("h2", {}, "How the ranking moved"), moved)));
  const form = h("form", { class: "card stack ask", role: "search", onsubmit: submit },
    h("div", { class: "row" }, h("div", { class: "grow" }, box), button),
    h("div", { class: "row end" }, datasetField, splitField, methodField, h("label", {}, "Videos", count), h("label", {}, "Most turns", turns)));
  put(place, h("div", { class: "stack" }, h("h1", {}, "Search"), form, verdict, results));

  options(dataset, datasets.map((one) => [one.name, `${one.name} (${one.num_videos.toLocaleString("en")} videos)`]), asked.get("d"));
  dataset.addEventListener("change", () => fillFields());
  fillFields(asked.get("s"), asked.get("m"));

  function fillFields(wantedSplit = "test", wantedMethod = "") {
    const chosen = datasets.find((one) => one.name === dataset.value);
    const splits = Object.entries(chosen?.splits || {});
    options(split, splits.map(([name, number]) => [name, `${name} (${number})`]), splits.some(([name]) => name === wantedSplit) ? wantedSplit : splits[0]?.[0]);
    const methods = (chosen?.methods || []).map((one) => [one.name, one.label]);
    options(method, [["", "the best method built"], ...methods, ["-", "similarity alone"]], wantedMethod || "");
  }

  function submit(event) {
    event.preventDefault();
    const values = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    go("search", values);
  }

  let stop = null;
  const asking = asked.get("q");
  if (asking && datasets.length) run();
  else box.focus();

  async function run() {
    stop = new AbortController();
    const isPlain = method.value === "-";
    const body = { text: asking, dataset: dataset.value, split: split.value, top_k: Number(count.value) || 5, verify: !isPlain,
      method: isPlain ? null : method.value || null, turns: isPlain ? null : Number(turns.value) || null };
    const seen = [];
    verdict.hidden = false;
    verdict.className = "verdict waiting";
    put(verdict, "Searching");
    button.disabled = true;
    try {
      await search(body, (name, data) => {
        if (name === "turn") { seen.push(data); showTurn(data, seen); }
        else if (name === "found") showFound(data);
        else if (name === "failed") throw new Error(data.detail);
      }, stop.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      verdict.className = "verdict failed";
      put(verdict, `The search failed: ${error.message}`);
    } finally {
      button.disabled = false;
    }
  }

  function showTurn(turn, seen) {
    results.hidden = false;
    put(verdict, `Turn ${turn.turn}: ${turn.decision === "matched" ? "matched" : "not matched, searching on"}`);
    trace.append(turnCard(dataset.value, turn, pickOne));
    put(moved, moves(seen.map((one) => ({ label: `turn ${one.turn}`, videos: one.ranking.map((at) => at.video) })), turn.video));
  }

  // A card or a turn that a person picked: the player may be out of sight, above all on a phone.
  function pickOne(said) {
    show(said);
    player.element.scrollIntoView({ block: "nearest" });
  }

  function show(said) {
    const span = spanOf(said);
    player.open(dataset.value, said.video, [{ kind: "first", label: "predicted", span }], (span || windowOf(said))?.[0] ?? 0);
    for (const card of hits.querySelectorAll(".hit")) card.setAttribute("aria-current", String(card.dataset.video === said.video));
  }

  function showFound(found) {
    results.hidden = false;
    verdict.className = `verdict ${found.matched_turn ? "yes" : "no"}`;
    put(verdict, found.verdict[0].toUpperCase() + found.verdict.slice(1));
    put(trace, found.turns.map((turn) => turnCard(found.dataset, turn, pickOne)));
    if (!found.turns.length) put(trace, h("li", { class: "soft" }, "Nothing was shown to a policy: videos are ranked by similarity alone."));
    put(hits, found.hits.map((hit) => h("li", {}, card(found.dataset, hit))));
    const rankings = found.turns.map((turn) => ({ label: `turn ${turn.turn}`, videos: turn.ranking.map((at) => at.video) }));
    const matched = found.turns.find((turn) => turn.decision === "matched");
    put(moved, moves([...rankings, { label: "last", videos: found.hits.map((hit) => hit.video) }], matched?.video || found.hits[0]?.video));
    const spent = `${found.seconds.toFixed(1)} s` + (found.loading_s > 0.5 ? `, after loading the models for ${found.loading_s.toFixed(1)} s` : "");
    put(foot, `Searched by ${found.method || "the embedder alone"}, checkpoint ${found.checkpoint}, in ${spent}.`);
    const best = found.hits.find((hit) => hit.decision === "matched") || found.hits[0];
    if (matched || best) show(matched || best);
  }

  function card(name, hit) {
    const span = spanOf(hit), part = windowOf(hit), up = hit.first_rank - hit.rank;
    const moved = up > 0 ? `▲ from ${hit.first_rank}` : up < 0 ? `▼ from ${hit.first_rank}` : "as at first";
    return h("button", { type: "button", class: "hit", "data-video": hit.video, onclick: () => pickOne(hit) },
      h("span", { class: "row" }, h("span", { class: "rank" }, hit.rank), h("span", { class: "grow break" }, hit.video),
        hit.decision && decision(hit.decision)),
      strip(name, hit.video, span, part),
      h("span", { class: "row small soft mono" }, h("span", {}, `similarity ${hit.score.toFixed(3)}`), h("span", {}, moved),
        (span || part) && h("span", {}, `${span ? "" : "window "}${seconds((span || part)[0])} to ${seconds((span || part)[1])}`)));
  }

  return { player, leave: () => { stop?.abort(); player.close(); }, items: () => [...hits.querySelectorAll(".hit")], box };
}
