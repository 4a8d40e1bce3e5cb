// Corrections of one query: the form, what was corrected so far, the plan of the build that follows, and its progress.

import { get, of, post } from "/page/api.js";
import { h, put, seconds } from "/page/dom.js";

const POLL_MS = 700;

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function stored(name) {
  try { return localStorage.getItem(name) || ""; } catch { return ""; }
}

function store(name, value) {
  try { localStorage.setItem(name, value); } catch { /* private mode */ }
}

// What a correction changes, in words.
function changesOf({ action, before, after }) {
  if (action === "reject") return "rejected";
  const span = (said) => `${seconds(said.start_s)} to ${seconds(said.end_s)}`;
  if (!before) return `added: “${after.query}”, ${after.video_id}, ${span(after)}`;
  const parts = [];
  if (before.query !== after.query) parts.push(`text “${before.query}” → “${after.query}”`);
  if (before.video_id !== after.video_id) parts.push(`right video ${before.video_id} → ${after.video_id}`);
  if (span(before) !== span(after)) parts.push(`span ${span(before)} → ${span(after)}`);
  if (before.split !== after.split) parts.push(`split ${before.split} → ${after.split}`);
  return parts.join("; ");
}

export class Corrector {
  // built(seconds): called when a build has ended that ran while the view was open.
  constructor({ dataset, id, player, built }) {
    // now: what the query says; null where it was rejected.
    Object.assign(this, { dataset, id, player, built, now: null, action: "", isOpen: true });
    this.query = h("textarea", { name: "query", rows: 2, maxlength: 2000, required: true });
    this.video = h("input", { name: "video_id", maxlength: 1000, required: true, list: "videos-of-dataset", autocomplete: "off" });
    this.videos = h("datalist", { id: "videos-of-dataset" });
    this.times = ["start_s", "end_s"].map((name) => h("input", { name, type: "number", min: 0, step: "any", required: true, oninput: () => this.typed() }));
    this.who = h("input", { name: "who", maxlength: 100, autocomplete: "name", value: stored("who") });
    this.title = h("h3", { tabindex: -1 });
    this.form = h("form", { class: "stack", hidden: true, onsubmit: (event) => { event.preventDefault(); this.save(); } },
      this.title,
      h("label", {}, "Query", this.query),
      h("div", { class: "row end" }, h("label", { class: "grow" }, "Right video", this.video), this.videos,
        h("label", {}, "Start, s", this.times[0]), h("label", {}, "End, s", this.times[1]), h("label", {}, "Your name", this.who)),
      h("p", { class: "soft small" }, "Drag the ends of the span under the video, or use the arrow keys on them."),
      h("div", { class: "row" }, h("button", { type: "submit", class: "main" }, "Save"),
        h("button", { type: "button", onclick: () => this.close() }, "Cancel")));
    this.error = h("p", { class: "verdict failed", role: "alert", hidden: true });
    this.list = h("ul", { class: "plain" });
    this.plan = h("p", { class: "grow", role: "status" });
    this.start = h("button", { type: "button", class: "main", hidden: true, onclick: () => this.build() }, "Build now");
    this.progress = h("p", { class: "soft small break", role: "status" });
    this.buttons = h("div", { class: "row buttons", hidden: true },
      h("button", { type: "button", onclick: () => this.open("change") }, "Correct this query"),
      h("button", { type: "button", onclick: () => this.open("add") }, "Add a query"),
      h("button", { type: "button", onclick: () => this.reject() }, "Reject this query"));
    this.element = h("section", { class: "card stack corrections", "aria-label": "Corrections" }, h("h2", {}, "Corrections"),
      this.buttons, this.form, this.error, this.list, h("div", { class: "row" }, this.plan, this.start), this.progress);
    this.video.addEventListener("input", () => this.suggest());
    this.doing(async () => { await this.load(); await this.follow(); });
  }

  leave() { this.isOpen = false; }

  // Run a request; what goes wrong is said below the form.
  async doing(work) {
    this.error.hidden = true;
    try {
      await work();
    } catch (error) {
      put(this.error, error.message);
      this.error.hidden = false;
    }
  }

  async open(action) {
    this.action = action;
    this.form.hidden = false;
    put(this.title, action === "add" ? "A new query" : "Correct this query");
    this.query.value = action === "add" ? "" : this.now.query;
    this.video.value = this.now.video_id;
    [this.times[0].value, this.times[1].value] = [this.now.start_s, this.now.end_s];
    await this.player.show(this.dataset, this.now.video_id, this.now.start_s);
    this.player.edit([this.now.start_s, this.now.end_s], (span) => { [this.times[0].value, this.times[1].value] = span; });
    this.title.focus({ preventScroll: true });
  }

  close() {
    this.form.hidden = true;
    this.player.edit(null);
  }

  typed() {
    const [start, end] = this.times.map((input) => input.valueAsNumber);
    if (end > start) this.player.editor?.set([start, end]);
  }

  async suggest() {
    const { videos } = await get(of(this.dataset, "videos"), { text: this.video.value, limit: 20 });
    put(this.videos, videos.map((one) => h("option", { value: one.video_id })));
  }

  save() {
    const changes = { query: this.query.value, video_id: this.video.value, start_s: this.times[0].valueAsNumber, end_s: this.times[1].valueAsNumber };
    const isNew = this.action === "add";
    store("who", this.who.value);
    return this.doing(async () => {
      await post(of(this.dataset, "corrections"), { action: this.action, query_id: isNew ? "" : this.id, who: this.who.value,
        changes: isNew ? { ...changes, split: this.now.split } : changes, before: isNew ? null : this.now });
      this.close();
      await this.load();
    });
  }

  reject() {
    return this.doing(async () => {
      await post(of(this.dataset, "corrections"), { action: "reject", query_id: this.id, before: this.now, who: this.who.value });
      await this.load();
    });
  }

  undo(one) {
    return this.doing(async () => {
      await post(of(this.dataset, "corrections/undo"), { correction_id: one.correction_id, who: this.who.value });
      await this.load();
    });
  }

  // All corrections of the dataset that wait for something: those of this query first, then the others in force.
  async load() {
    const [own, all] = await Promise.all([get(of(this.dataset, "corrections"), { id: this.id }), get(of(this.dataset, "corrections"))]);
    this.now = own.now;
    this.buttons.hidden = !own.now;
    const others = all.corrections.filter((one) => one.query_id !== this.id && one.state !== "undone");
    put(this.list, own.corrections.map((one) => this.item(one)), others.map((one) => this.item(one, true)));
    if (!own.corrections.length && !others.length) put(this.list, h("li", { class: "soft small" }, "Nothing was corrected."));
    const plan = await get(of(this.dataset, "plan")).catch((error) => ({ says: error.message, assets: {} }));
    put(this.plan, plan.says);
    const { can_build: canBuild, state } = await get(of(this.dataset, "build"));
    const isDue = Object.keys(plan.assets).length > 0;
    this.start.hidden = !isDue || !canBuild || state === "running";
    if (isDue && !canBuild) this.plan.append(` Run: vsr1 build --dataset ${this.dataset}`);
  }

  item(one, isOther) {
    const kind = { applied: "yes", conflict: "no" }[one.state] || "maybe";
    return h("li", { class: "stack correction" },
      h("div", { class: "row" }, h("span", { class: `badge ${kind}` }, one.state), h("span", { class: "break grow" }, changesOf(one)),
        one.state !== "undone" && h("button", { type: "button", onclick: () => this.undo(one) }, "Undo")),
      h("div", { class: "soft small break" }, `${one.who}, ${one.when.replace("T", " ").replace("Z", " UTC")}${isOther ? `, of ${one.query_id}` : ""}`),
      one.detail && h("div", { class: "notice" }, one.detail));
  }

  build() {
    return this.doing(async () => {
      this.start.hidden = true;
      try {
        await post(of(this.dataset, "build"), {});
        await this.follow(true);
      } catch (error) {  // such as that of another build, which ends some time
        this.start.hidden = false;
        throw error;
      }
    });
  }

  // Show a running build until it has ended. wasRunning: whether one was started just now.
  async follow(wasRunning = false) {
    while (this.isOpen) {
      const { state, seconds: spent, problem, lines } = await get(of(this.dataset, "build"));
      if (state === "running") {
        wasRunning = true;
        put(this.progress, `Building for ${Math.round(spent)} s. ${lines.at(-1) || ""}`);
        await wait(POLL_MS);
        continue;
      }
      if (wasRunning && state === "done") this.built(spent);
      if (wasRunning && state === "failed") {
        put(this.progress, `The build stopped: ${problem}`);
        await this.load();
      }
      return;
    }
  }
}
