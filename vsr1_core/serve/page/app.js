// The page's frame: addresses, keys, theme. Views are in modules of their own.

import { get } from "/page/api.js";
import { h, put } from "/page/dom.js";
import { Player } from "/page/player.js";
import { queriesView } from "/page/queries.js";
import { queryView } from "/page/query.js";
import { searchView } from "/page/search.js";

const main = document.getElementById("main");
const VIEWS = { search: searchView, queries: queriesView, query: queryView, video: videoView };
const context = { datasets: [], outcomes: {}, health: {}, go, link };
let view = {};

export function link(name, values) {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `#/${name}?${new URLSearchParams(kept)}`;
}

function go(name, values) {
  const address = link(name, values);
  if (location.hash === address) show();
  else location.hash = address;
}

function show() {
  const [path, query] = location.hash.slice(1).split("?");
  const name = path.replace("/", "") || "search";
  view.leave?.();
  for (const at of document.querySelectorAll("nav a")) {
    const isHere = at.dataset.page === (name === "query" ? "queries" : name);
    if (isHere) at.setAttribute("aria-current", "page");
    else at.removeAttribute("aria-current");
  }
  view = (VIEWS[name] || searchView)(main, new URLSearchParams(query || ""), context) || {};
}

// One video at a time: #/video?d=toy&id=...&from=3&to=6
function videoView(place, asked) {
  const player = new Player();
  put(place, h("div", { class: "stack" }, h("h1", {}, "Video"), player.element));
  const [from, to] = [asked.get("from"), asked.get("to")].map((value) => (value === null ? null : Number(value)));
  const span = Number.isFinite(from) && Number.isFinite(to) && from !== null ? [from, to] : null;
  player.open(asked.get("d") || "", asked.get("id") || "", [{ kind: "first", label: "linked", span }], from || 0);
  return { player, leave: () => player.close() };
}

const THEMES = ["auto", "dark", "light"];

function setTheme(name) {
  const isDark = name === "dark" || (name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${name}`;
  try { localStorage.setItem("theme", name); } catch { /* private mode */ }
}

function theme() {
  try { return THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto"; } catch { return "auto"; }
}

function step(by) {
  const items = view.items?.() || [];
  if (!items.length) return;
  const at = items.indexOf(document.activeElement);
  items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(items.length - 1, Math.max(0, at + by))].focus();
}

const KEYS = {
  "/": () => (view.box || document.querySelector("input[type=search]"))?.focus(),
  j: () => step(1),
  k: () => step(-1),
  p: () => view.player?.toggle(),
  ",": () => view.player?.seek(view.player.time - 1),
  ".": () => view.player?.seek(view.player.time + 1),
  s: () => view.player?.seek(view.player.start),
  Escape: () => view.player?.close(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, select, textarea");
  if (isTyping && event.key === "Escape") event.target.blur();
  if (isTyping || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
document.getElementById("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme()));
window.addEventListener("hashchange", show);
setTheme(theme());

try {
  const [listed, health] = await Promise.all([get("/api/datasets"), get("/api/health")]);
  Object.assign(context, listed, { health });
  for (const [name, said] of Object.entries(listed.problems))
    main.before(h("p", { class: "notice", role: "status" }, `The dataset ${name} is left out: ${said}`));
  document.getElementById("server").textContent = `vsr1 ${health.version}`;
  if (!listed.datasets.length) put(main, h("p", { class: "verdict no" }, "Nothing is built yet. Run: vsr1 build --dataset toy"));
  else show();
} catch (error) {
  put(main, h("p", { class: "verdict failed" }, `The server does not answer: ${error.message}`));
}
