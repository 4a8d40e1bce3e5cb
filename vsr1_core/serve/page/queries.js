// Evaluated queries: the list with its filters. One query has a view of its own.

import { get, of } from "/page/api.js";
import { h, options, put } from "/page/dom.js";
import { outcome } from "/page/parts.js";

const PAGE_ROWS = 50, ALL = "*", EARLIER = "@earlier";

export function queriesView(place, asked, { datasets, outcomes, go, link }) {
  const evaluated = datasets.filter((one) => one.evaluated.length);
  const title = h("h1", {}, "Evaluated queries");
  if (!evaluated.length) {
    put(place, h("div", { class: "stack" }, title, h("p", {}, "No dataset of this home has predictions; build one with annotations.")));
    return {};
  }
  const chosen = evaluated.find((one) => one.name === asked.get("d")) || evaluated[0];
  const now = { d: chosen.name, m: asked.get("m") || chosen.evaluated.at(-1).name, s: asked.get("s") || "", o: asked.get("o") || "", q: asked.get("q") || "",
    b: asked.get("b") || "", differs: asked.get("differs") || "" };
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
        pick("b", "Beside", [["", "nothing"], [EARLIER, "the build before"], ...chosen.evaluated.filter((one) => one.name !== now.m).map((one) => [one.name, one.label])], now.b),
        now.b && h("label", { class: "check" }, h("input", { type: "checkbox", checked: Boolean(now.differs), onchange: (event) => change({ differs: event.target.checked ? "1" : "" }) }), "only where they differ"),
        pick("s", "Split", [["", "all"], ...Object.keys(chosen.splits).map((name) => [name, name])], now.s),
        h("label", { class: "grow" }, "Query", text), h("button", { type: "submit" }, "Filter")),
      chips),
    h("div", { class: "card" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Query"), h("th", { scope: "col" }, "Outcome"),
        now.b && h("th", { scope: "col" }, now.b === EARLIER ? "Before" : "Beside"),
        h("th", { scope: "col", class: now.b ? "num wide" : "num" }, "Rank"), h("th", { scope: "col", class: "num wide" }, "IoU"), h("th", { scope: "col", class: "num wide" }, "Turns"))),
      rows)), pages));

  const filter = { method: now.m === ALL ? "" : now.m, split: now.s, outcome: now.o, text: now.q, beside: now.b, differs: Boolean(now.differs), offset, limit: PAGE_ROWS };
  const beside = (row) => (now.b === EARLIER ? row.beside_built_at && `${row.method}@${row.beside_built_at}` : row.beside_outcome && now.b);
  get(of(now.d, "predictions"), filter).then((found) => {
    const all = Object.values(found.counts).reduce((sum, number) => sum + number, 0);
    const chip = (name, label, number) => h("button", { type: "button", "aria-pressed": String(now.o === name), onclick: () => change({ o: name }) }, `${label} ${number}`);
    put(chips, chip("", "all", all), Object.entries(outcomes).filter(([name]) => found.counts[name]).map(([name, label]) => chip(name, label, found.counts[name])));
    put(rows, found.queries.map((row) => h("tr", { class: "pick" },
      h("td", { class: "break" }, h("a", { class: "item", href: link("query", { d: now.d, id: row.query_id, a: row.method, b: beside(row) }) }, row.query || row.query_id),
        now.m === ALL && h("div", { class: "soft small" }, row.method)),
      h("td", {}, outcome(row.outcome, outcomes)),
      now.b && h("td", {}, row.beside_outcome ? outcome(row.beside_outcome, outcomes) : h("span", { class: "soft" }, "–")),
      h("td", { class: now.b ? "num wide" : "num" }, `${row.first_rank ?? "–"} → ${row.rank ?? "–"}`),
      h("td", { class: "num wide" }, row.iou === null ? "–" : row.iou.toFixed(2)), h("td", { class: "num wide" }, row.num_turns ?? "–"))));
    if (!found.queries.length) put(rows, h("tr", {}, h("td", { colspan: 6, class: "soft" }, "No query fits these filters.")));
    const page = (at, label) => h("button", { type: "button", disabled: at < 0 || at >= found.total, onclick: () => go("queries", { ...now, at }) }, label);
    put(pages, page(offset - PAGE_ROWS, "Previous"), page(offset + PAGE_ROWS, "Next"),
      h("span", { class: "soft small" }, found.total ? `${offset + 1} to ${Math.min(offset + PAGE_ROWS, found.total)} of ${found.total}` : ""));
  }).catch((error) => put(rows, h("tr", {}, h("td", { colspan: 6 }, error.message))));
  return { items: () => [...rows.querySelectorAll("a.item")], box: text };
}
