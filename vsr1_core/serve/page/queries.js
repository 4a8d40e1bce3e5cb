// Evaluated queries: the list with its filters, and one query with two methods side by side.

import { get, of } from "/page/api.js";
import { h, options, put, seconds } from "/page/dom.js";
import { moves, outcome, spanOf, turnCard } from "/page/parts.js";
import { Player } from "/page/player.js";

const PAGE_ROWS = 50, ALL = "*";

export function queriesView(place, asked, { datasets, outcomes, go, link }) {
  const evaluated = datasets.filter((one) => one.evaluated.length);
  const title = h("h1", {}, "Evaluated queries");
  if (!evaluated.length) {
    put(place, h("div", { class: "stack" }, title, h("p", {}, "No dataset of this home has predictions; build one with annotations.")));
    return {};
  }
  const chosen = evaluated.find((one) => one.name === asked.get("d")) || evaluated[0];
  const now = { d: chosen.name, m: asked.get("m") || chosen.evaluated.at(-1).name, s: asked.get("s") || "", o: asked.get("o") || "", q: asked.get("q") || "" };
  const offset = Number(asked.get("at")) || 0;
  const change = (values) => go("queries", { ...now, ...values });
  const pick = (name, label, values, value) => {
    const select = options(h("select", { onchange: (event) => change({ [name]: event.target.value }) }), values, value);
    return h("label", {}, label, select);
  };
  const text = h("input", { type: "search", value: now.q, maxlength: 200, placeholder: "words in the query" });
  const chips = h("div", { class: "row chips", role: "group", "aria-label": "Outcome" });
  const rows = h("tbody");
  const pages = h("div", { class: "row" });
  put(place, h("div", { class: "stack" }, title,
    h("form", { class: "card stack", onsubmit: (event) => { event.preventDefault(); change({ q: text.value }); } },
      h("div", { class: "row end" },
        pick("d", "Dataset", evaluated.map((one) => [one.name, one.name]), now.d),
        pick("m", "Method", [...chosen.evaluated.map((one) => [one.name, one.label]), [ALL, "all methods"]], now.m),
        pick("s", "Split", [["", "all"], ...Object.keys(chosen.splits).map((name) => [name, name])], now.s),
        h("label", { class: "grow" }, "Query", text), h("button", { type: "submit" }, "Filter")),
      chips),
    h("div", { class: "card" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Query"), h("th", { scope: "col" }, "Outcome"),
        h("th", { scope: "col", class: "num" }, "Rank"), h("th", { scope: "col", class: "num wide" }, "IoU"), h("th", { scope: "col", class: "num wide" }, "Turns"))),
      rows)), pages));

  const filter = { method: now.m === ALL ? "" : now.m, split: now.s, outcome: now.o, text: now.q, offset, limit: PAGE_ROWS };
  get(of(now.d, "predictions"), filter).then((found) => {
    const all = Object.values(found.counts).reduce((sum, number) => sum + number, 0);
    const chip = (name, label, number) => h("button", { type: "button", "aria-pressed": String(now.o === name), onclick: () => change({ o: name }) }, `${label} ${number}`);
    put(chips, chip("", "all", all), Object.entries(outcomes).filter(([name]) => found.counts[name]).map(([name, label]) => chip(name, label, found.counts[name])));
    put(rows, found.queries.map((row) => h("tr", { class: "pick" },
      h("td", { class: "break" }, h("a", { class: "item", href: link("query", { d: now.d, id: row.query_id, a: row.method }) }, row.query || row.query_id),
        now.m === ALL && h("div", { class: "soft small" }, row.method)),
      h("td", {}, outcome(row.outcome, outcomes)),
      h("td", { class: "num" }, `${row.first_rank ?? "–"} → ${row.rank ?? "–"}`),
      h("td", { class: "num wide" }, row.iou === null ? "–" : row.iou.toFixed(2)), h("td", { class: "num wide" }, row.num_turns ?? "–"))));
    if (!found.queries.length) put(rows, h("tr", {}, h("td", { colspan: 5, class: "soft" }, "No query fits these filters.")));
    const page = (at, label) => h("button", { type: "button", disabled: at < 0 || at >= found.total, onclick: () => go("queries", { ...now, at }) }, label);
    put(pages, page(offset - PAGE_ROWS, "Previous"), page(offset + PAGE_ROWS, "Next"),
      h("span", { class: "soft small" }, found.total ? `${offset + 1} to ${Math.min(offset + PAGE_ROWS, found.total)} of ${found.total}` : ""));
  }).catch((error) => put(rows, h("tr", {}, h("td", { colspan: 5 }, error.message))));
  return { items: () => [...rows.querySelectorAll("a.item")], box: text };
}

export function queryView(place, asked, { outcomes, health, go, link }) {
  const dataset = asked.get("d") || "", id = asked.get("id") || "";
  const player = new Player();
  const body = h("div", { class: "stack" }, h("p", { class: "soft waiting" }, "Loading"));
  put(place, body);
  get(of(dataset, "prediction"), { id }).then(({ moment, answers }) => {
    const first = answers.find((one) => one.method === asked.get("a")) || answers[0];
    const second = answers.find((one) => one.method === asked.get("b")) || null;
    const truth = [moment.start_s, moment.end_s];
    const show = (said, kind = "first") => {
      const bars = said.video === moment.video_id ? [{ kind: "truth", label: "annotated", span: truth }] : [];
      const predicted = kind === "truth" ? [] : [{ kind, label: "predicted", span: spanOf(said) }];
      for (const [answer, colour] of [[first, "first"], [second, "second"]])
        if (answer && kind === "truth" && answer.video_id === said.video) predicted.push({ kind: colour, label: answer.method, span: spanOf(answer) });
      player.open(dataset, said.video, [...predicted, ...bars], spanOf(said)?.[0] ?? (bars.length ? truth[0] : 0));
    };
    const select = (name, value, empty) => h("label", {}, name === "a" ? "Method" : "Beside it", options(
      h("select", { onchange: (event) => go("query", { d: dataset, id, a: first?.method, b: second?.method, [name]: event.target.value }) }),
      [...(empty ? [["", "none"]] : []), ...answers.map((one) => [one.method, one.method])], value));
    put(body,
      h("p", { class: "small" }, h("a", { href: link("queries", { d: dataset, m: first?.method || "" }) }, "← evaluated queries")),
      h("h1", { class: "break" }, moment.query),
      h("div", { class: "row small soft" },
        h("span", {}, `${dataset} · ${moment.split} · ${id}`),
        h("button", { type: "button", class: "break", onclick: () => show({ video: moment.video_id }, "truth") },
          `▶ right video ${moment.video_id}, ${seconds(truth[0])} to ${seconds(truth[1])}`),
        h("a", { href: link("search", { d: dataset, q: moment.query, s: moment.split }) }, "search for this text"),
        health.ui_url && h("a", { href: `${health.ui_url}/assets`, rel: "noreferrer" }, "assets in Dagster")),
      h("div", { class: "row end" }, select("a", first?.method, false), select("b", second?.method || "", true)),
      player.element,
      h("div", { class: second ? "columns" : "stack" },
        [[first, "first"], [second, "second"]].filter(([answer]) => answer).map(([answer, kind]) => answerCard(dataset, moment, answer, kind, outcomes, show))));
    show({ video: moment.video_id }, "truth");
  }).catch((error) => put(body, h("p", { class: "verdict failed" }, error.message)));
  return { player, leave: () => player.close(), items: () => [] };
}

function answerCard(dataset, moment, answer, kind, outcomes, show) {
  const turns = answer.turns.map((turn) => ({ ...turn, video: turn.video_id }));
  const rankings = turns.filter((turn) => turn.top_video_ids).map((turn) => ({ label: `turn ${turn.turn}`, videos: turn.top_video_ids }));
  if (answer.top_video_ids && turns.length) rankings.push({ label: "last", videos: answer.top_video_ids });
  const tokens = answer.prefix_ranks;
  return h("section", { class: "card stack" },
    h("div", { class: "row" }, h("h2", {}, answer.method), outcome(answer.outcome, outcomes)),
    answer.error && h("p", { class: "notice" }, answer.error),
    h("p", { class: "row small soft mono" }, h("span", {}, `right video: place ${answer.first_rank ?? "–"} at first, ${answer.rank ?? "–"} at last`),
      h("span", {}, `IoU ${answer.iou === null ? "–" : answer.iou.toFixed(2)}`), h("span", {}, `checkpoint ${answer.checkpoint || "–"}`)),
    h("ol", { class: "plain" }, turns.map((turn) => turnCard(dataset, turn, (said) => show(said, kind), moment.video_id))),
    rankings.length > 0 && h("h3", {}, "How the ranking moved"), rankings.length > 0 && moves(rankings, moment.video_id),
    tokens && h("h3", {}, "Place of the right video, by soft tokens per turn"),
    tokens && h("table", { class: "mono" }, h("tbody", {},
      h("tr", {}, h("th", { scope: "row" }, "tokens"), tokens.map((_, at) => h("td", { class: "num" }, at))),
      h("tr", {}, h("th", { scope: "row" }, "place"), tokens.map((place) => h("td", { class: "num" }, place ?? "–"))))));
}
