// A span on a timeline that a person drags: at either end, or as a whole. Arrow keys move the end that has the focus.

import { h, seconds } from "/page/dom.js";

const SHORTEST_S = 0.1;
const STEPS = { ArrowLeft: -0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowUp: 0.1, PageDown: -5, PageUp: 5 };

export const rounded = (time) => Math.round(time * 100) / 100;

export class SpanEditor {
  // length: of the video, in seconds. changed(span, edge): called with each change; edge is the time that was moved.
  constructor(length, span, changed) {
    Object.assign(this, { length, span: [...span], changed });
    this.bar = h("div", { class: "range", title: "Drag to move the span" });
    this.ends = ["Start", "End"].map((name, at) => h("div", { class: "handle", role: "slider", tabindex: 0,
      "aria-label": `${name} of the corrected span`, onkeydown: (event) => this.key(event, at) }));
    this.element = h("div", { class: "lane edit", onclick: (event) => event.stopPropagation() }, this.bar, this.ends);
    this.ends.forEach((end, at) => this.drags(end, (time) => this.move(at, time)));
    this.drags(this.bar, (time, begun) => this.shift(time - begun.time, begun.span));
    this.show();
  }

  drags(handle, moved) {
    handle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      handle.focus?.();
      handle.setPointerCapture(event.pointerId);
      const begun = { time: this.timeAt(event), span: [...this.span] };
      const move = (at) => moved(this.timeAt(at), begun);
      handle.addEventListener("pointermove", move);
      handle.addEventListener("lostpointercapture", () => handle.removeEventListener("pointermove", move), { once: true });
    });
  }

  timeAt(event) {
    const box = this.element.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * this.length;
  }

  key(event, at) {
    const to = { Home: 0, End: this.length }[event.key];
    const step = STEPS[event.key] * (event.shiftKey ? 10 : 1);
    if (to === undefined && !step) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(at, to ?? this.span[at] + step);
  }

  move(at, time) {
    const [least, most] = at === 0 ? [0, this.span[1] - SHORTEST_S] : [this.span[0] + SHORTEST_S, this.length];
    this.span[at] = rounded(Math.min(most, Math.max(least, time)));
    this.tell(this.span[at]);
  }

  shift(by, from) {
    const start = Math.min(this.length - (from[1] - from[0]), Math.max(0, from[0] + by));
    this.span = [rounded(start), rounded(start + from[1] - from[0])];
    this.tell(this.span[0]);
  }

  set(span) {
    this.span = [...span];
    this.show();
  }

  tell(edge) {
    this.show();
    this.changed([...this.span], edge);
  }

  show() {
    const percent = (time) => `${Math.min(100, Math.max(0, (time / this.length) * 100))}%`;
    Object.assign(this.bar.style, { left: percent(this.span[0]), width: percent(this.span[1] - this.span[0]) });
    this.ends.forEach((end, at) => {
      end.style.left = percent(this.span[at]);
      for (const [name, value] of [["min", 0], ["max", rounded(this.length)], ["now", this.span[at]], ["text", seconds(this.span[at])]])
        end.setAttribute(`aria-value${name}`, String(value));
    });
  }
}
