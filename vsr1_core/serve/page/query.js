// One evaluated query: two answers side by side, of two methods or of two builds, and its corrections.

import { get, of } from "/page/api.js";
import { Corrector } from "/page/corrections.js";
import { h, options, put, seconds } from "/page/dom.js";
import { moves, outcome, scrolling, spanOf, turnCard, windowOf } from "/page/parts.js";
import { Player } from "/page/player.js";

const dayOf = (built) => built.replace("T", " ").slice(0, 16);

// Everything that can stand on one side: what each method says now, and what it said after earlier builds.
function sidesOf({ answers, earlier }) {
  const now = answers.map((answer) => ({ key: answer.method, label: answer.method, answer }));
  const before = (earlier || []).map((answer) => ({ key: `${answer.method}@${answer.built_at}`, answer,
    label: `${answer.method}, build of ${dayOf(answer.built_at)}`, moment: { video_id: answer.gt_video_id } }));
  return [...now, ...before];
}

export function queryView(place, asked, context) {
  const dataset = asked.get("d") || "", id = asked.get("id") || "";
  const player = new Player();
  const body = h("div", { class: "stack" }, h("p", { class: "soft waiting" }, "Loading"));
  const view = { player, corrector: null, leave: () => { view.corrector?.leave(); player.close(); }, items: () => [...body.querySelectorAll(".turn button")] };
  put(place, body);

  // previous: the answers from before a build that this page started, to stand beside the new ones.
  async function load(previous) {
    view.corrector?.leave();
    view.corrector = new Corrector({ dataset, id, player, built });
    let found;
    try {
      found = await get(of(dataset, "prediction"), { id });
    } catch (error) {
      put(body, h("p", { class: "verdict failed", role: "alert" }, error.message), view.corrector.element);
      return;
    }
    const sides = sidesOf(found);
    const first = sides.find((side) => side.key === asked.get("a")) || sides[0];
    const old = previous?.answers.find((answer) => answer.method === first?.answer.method);
    const second = old ? { key: "", label: `${old.method}, before this build`, answer: old, moment: previous.moment } : sides.find((side) => side.key === asked.get("b"));
    draw(found, sides, [first, second]);
  }

  function built(spent) {
    load(view.found).then(() => put(view.corrector.progress, `Built in ${Math.round(spent)} s. The new result stands beside the old one.`));
  }

  function draw(found, sides, [first, second]) {
    const { moment, answers } = view.found = found;
    const truth = [moment.start_s, moment.end_s];
    const shown = [[first, "first"], [second, "second"]].filter(([side]) => side);
    const show = (said, kind = "first") => {
      const bars = said.video === moment.video_id ? [{ kind: "truth", label: "annotated", span: truth }] : [];
      const predicted = kind === "truth" ? [] : [{ kind, label: "predicted", span: spanOf(said) }];
      for (const [side, colour] of shown)
        if (kind === "truth" && side.answer.video_id === said.video) predicted.push({ kind: colour, label: side.label, span: spanOf(side.answer) });
      player.open(dataset, said.video, [...predicted, ...bars], (spanOf(said) || windowOf(said))?.[0] ?? (bars.length ? truth[0] : 0));
    };
    const select = (name, label, values, value) => h("label", {}, label, options(
      h("select", { onchange: (event) => context.go("query", { d: dataset, id, a: first?.key, b: second?.key, [name]: event.target.value }) }), values, value));
    const named = sides.map((side) => [side.key, side.label]);
    put(body,
      h("p", { class: "small" }, h("a", { href: context.link("queries", { d: dataset, m: first?.answer.method || "" }) }, "← evaluated queries")),
      h("h1", { class: "break" }, moment.query),
      h("div", { class: "row small soft" },
        h("span", { class: "break" }, `${dataset} · ${moment.split} · ${id}`),
        h("button", { type: "button", class: "break", onclick: () => show({ video: moment.video_id }, "truth") },
          `▶ right video ${moment.video_id}, ${seconds(truth[0])} to ${seconds(truth[1])}`),
        h("a", { href: context.link("search", { d: dataset, q: moment.query, s: moment.split }) }, "search for this text"),
        context.health.ui_url && h("a", { href: `${context.health.ui_url}/assets`, rel: "noreferrer" }, "assets in Dagster")),
      h("div", { class: "row end" }, select("a", "Answer", named, first?.key), select("b", "Beside it", [["", "none"], ...named], second?.key || "")),
      player.element,
      view.corrector.element,
      !answers.length && h("p", { class: "soft" }, "No method has answered this query yet."),
      h("div", { class: second ? "columns" : "stack" }, shown.map(([side, kind]) => answerCard(dataset, side.moment || moment, side, kind, context.outcomes, show))));
    show({ video: moment.video_id }, "truth");
  }

  load();
  return view;
}

function answerCard(dataset, moment, { label, answer }, kind, outcomes, show) {
  const turns = answer.turns.map((turn) => ({ ...turn, video: turn.video_id }));
  const rankings = turns.filter((turn) => turn.top_video_ids).map((turn) => ({ label: `turn ${turn.turn}`, videos: turn.top_video_ids }));
  if (answer.top_video_ids && turns.length) rankings.push({ label: "last", videos: answer.top_video_ids });
  const tokens = answer.prefix_ranks, span = spanOf(answer);
  return h("section", { class: `card stack answer ${kind}` },
    h("div", { class: "row" }, h("h2", { class: "break" }, label), outcome(answer.outcome, outcomes)),
    answer.error && h("p", { class: "notice" }, answer.error),
    h("p", { class: "row small soft mono" }, h("span", {}, `right video: place ${answer.first_rank ?? "–"} at first, ${answer.rank ?? "–"} at last`),
      h("span", {}, `IoU ${answer.iou === null ? "–" : answer.iou.toFixed(2)}`),
      span && h("span", {}, `${seconds(span[0])} to ${seconds(span[1])}`), h("span", {}, `checkpoint ${answer.checkpoint || "–"}`)),
    !turns.length && answer.video_id && h("button", { type: "button", class: "break", onclick: () => show({ ...answer, video: answer.video_id }, kind) }, `▶ ${answer.video_id}`),
    h("ol", { class: "plain" }, turns.map((turn) => turnCard(dataset, turn, (said) => show(said, kind), moment.video_id))),
    rankings.length > 0 && h("h3", {}, "How the ranking moved"), rankings.length > 0 && moves(rankings, moment.video_id, label),
    tokens && h("h3", {}, "Place of the right video, by soft tokens per turn"),
    tokens && scrolling(`Place of the right video, by soft tokens per turn, ${label}`, h("table", { class: "mono" }, h("tbody", {},
      h("tr", {}, h("th", { scope: "row" }, "tokens"), tokens.map((_, at) => h("td", { class: "num" }, at))),
      h("tr", {}, h("th", { scope: "row" }, "place"), tokens.map((place) => h("td", { class: "num" }, place ?? "–")))))));
}
