// The player: opens at the span, with predicted and annotated bars on a timeline of the video's true length.

import { facts, fileOf } from "/page/api.js";
import { h, put, seconds } from "/page/dom.js";
import { SpanEditor } from "/page/spans.js";

export class Player {
  constructor() {
    this.video = h("video", { controls: true, preload: "metadata", playsinline: true, "aria-label": "The video" });
    this.notice = h("p", { class: "notice", role: "status", hidden: true });
    this.title = h("h2", { class: "break" });
    this.timeline = h("div", { class: "timeline" });
    this.head = h("i", { class: "head" });
    this.ends = h("div", { class: "scale", "aria-hidden": "true" });
    this.element = h("section", { class: "card stack playing", "aria-label": "Player", hidden: true },
      this.title, this.notice, this.video, this.timeline, this.ends);
    this.start = 0;
    this.video.addEventListener("timeupdate", () => this.moveHead());
    this.video.addEventListener("seeked", () => this.moveHead());
    this.video.addEventListener("loadedmetadata", () => { this.seek(this.start); this.ready(); });
    this.video.addEventListener("error", () => this.convert("This browser does not play the file"));
    this.timeline.addEventListener("click", (event) => this.pick(event));
  }

  // bars: [{kind: "truth" | "first" | "second", label, span: [start, end]}]; times in seconds from the first frame.
  async open(dataset, video, bars, start) {
    const shown = bars.filter((bar) => bar.span);
    this.start = start ?? shown[0]?.span[0] ?? 0;
    this.element.hidden = false;
    this.title.textContent = video;
    const isSame = this.dataset === dataset && this.id === video;
    Object.assign(this, { dataset, id: video });
    if (!isSame) this.reserve(shown.length);
    const isLeft = () => this.dataset !== dataset || this.id !== video; // another one was opened meanwhile
    let found;
    try {
      found = await facts(dataset, video);
    } catch (error) {
      if (!isLeft()) this.say(error.message);
      return;
    }
    if (isLeft()) return;
    this.facts = found;
    this.editor = null;
    this.draw(shown);
    if (isSame && this.video.readyState > 0) this.seek(this.start);
    else if (!this.facts.has_file) this.say("Only frames of this video were kept; its file is not here.");
    else if (this.facts.plays) this.load(false);
    else this.convert(`Browsers do not play this file (${this.facts.codec || "unknown codec"})`);
  }

  // The video itself, with the bars that it has if it is open already.
  async show(dataset, video, start) {
    if (this.dataset !== dataset || this.id !== video || !this.facts) await this.open(dataset, video, [], start);
    this.element.hidden = false;
  }

  // Let a person drag a span; null takes it away again.
  edit(span, changed) {
    this.editor?.element.remove();
    this.editor = span && new SpanEditor(this.length, span, (to, edge) => { this.seek(edge); changed(to); });
    if (this.editor) this.timeline.prepend(this.editor.element);
  }

  load(isConverted) {
    this.isConverted = isConverted;
    // A file's own clock may not begin at 0; a converted copy's does.
    this.clock = isConverted ? 0 : this.facts.start_s;
    if (!isConverted) this.notice.hidden = true;
    this.video.src = fileOf(this.dataset, this.id, isConverted);
  }

  convert(why) {
    if (!this.facts || this.isConverted && this.video.src) {
      this.say(`${why}, and it could not be converted.`);
      return;
    }
    this.why = why;
    this.say(`${why}. It is being converted; this takes a while the first time.`);
    this.load(true);
  }

  ready() {
    if (this.isConverted) this.say(`${this.why}. This is a converted copy, without sound.`);
  }

  say(text) {
    put(this.notice, text);
    this.notice.hidden = false;
  }

  get length() { return this.facts?.duration_s || this.video.duration || 1; }
  get time() { return this.video.currentTime - (this.clock || 0); }
  seek(time) { this.video.currentTime = Math.max(0, time) + (this.clock || 0); this.moveHead(time); }
  toggle() { if (this.video.paused) this.video.play(); else this.video.pause(); }
  close() { this.video.pause(); this.element.hidden = true; }

  // The room of so many bars: what stands below must not move when the video's length is known.
  reserve(numBars) {
    put(this.timeline, Array.from({ length: numBars || 1 }, () => h("div", { class: "lane" })), this.head);
    put(this.ends, h("span", {}, "0:00"));
  }

  draw(bars) {
    const percent = (time) => `${Math.min(100, Math.max(0, (time / this.length) * 100))}%`;
    const lane = ({ kind, label, span }) => h("div", { class: "lane" }, h("button", {
      type: "button", class: kind, title: `${label}: ${seconds(span[0])} to ${seconds(span[1])}`,
      style: { left: `min(${percent(span[0])}, 100% - 6px)`, width: percent(span[1] - span[0]) }, // 6px: the least width
      onclick: (event) => { event.stopPropagation(); this.start = span[0]; this.seek(span[0]); },
    }, label));
    put(this.timeline, bars.length ? bars.map(lane) : h("div", { class: "lane" }), this.head);
    put(this.ends, h("span", {}, "0:00"), h("span", {}, seconds(this.length)));
    this.moveHead(0);
  }

  pick(event) {
    const box = this.timeline.getBoundingClientRect();
    this.seek(((event.clientX - box.left) / box.width) * this.length);
  }

  moveHead(time = this.time) {
    this.head.style.left = `${Math.min(100, Math.max(0, (time / this.length) * 100))}%`;
  }
}
