// Lines over the last minutes, ten at the most: axes with units, a gap where nothing was, and the values under the pointer or, by the
// arrow keys, under a cursor.

import { draw, few, make, mark, ms, tell } from "./dom.js";

// the shortest that holds all points
const SPANS_S = [60, 120, 300, 600];
const HEIGHT = 132;
const LEFT = 50;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;
const DECADES = [1e-2, 1e-1, 1, 10, 100, 1000, 10000];

/** One chart.  lines: {name, kind}; kind is a class of console.css.  unit: "ms", whose axis is logarithmic, or a word. */
export class Chart {
  constructor(title, unit, lines) {
    this.unit = unit;
    this.lines = lines;
    this.times = [];
    this.values = lines.map(() => []);
    this.at = null;
    this.svg = draw("svg", { class: "plot", height: HEIGHT, "aria-hidden": "true" });
    this.told = lines.map(() => make("b"));
    const keys = lines.map((line, place) =>
      make("span", { class: "key" }, this.swatch(line), ` ${line.name} `, this.told[place]),
    );
    this.when = make("span", { class: "when quiet" });
    this.title = title;
    this.figure = make(
      "figure",
      {
        class: "chart",
        tabindex: "0",
        onpointermove: (event) => this.point(event),
        onpointerleave: () => this.look(null),
        onkeydown: (event) => this.step(event),
        onblur: () => this.look(null),
      },
      make("figcaption", {}, make("span", { class: "title" }, title), this.when, make("span", { class: "keys" }, keys)),
      this.svg,
    );
    new ResizeObserver(() => this.paint()).observe(this.figure);
  }

  swatch(line) {
    const stroke = draw("line", { x1: 0, y1: 5, x2: 14, y2: 5, class: `line ${line.kind}` });
    return draw("svg", { class: "swatch", width: 14, height: 10, "aria-hidden": "true" }, stroke);
  }

  /** times: seconds; values: a list for each line, null where there is none. */
  show(times, values) {
    this.times = times;
    this.values = values;
    this.paint();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    const wanted = this.end - this.span * (1 - share);
    let best = null;
    this.times.forEach((time, place) => {
      if (best === null || Math.abs(time - wanted) < Math.abs(this.times[best] - wanted)) best = place;
    });
    this.look(best);
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.times.length) return;
    event.preventDefault();
    const last = this.times.length - 1;
    this.look(Math.min(last, Math.max(0, (this.at ?? last + 1) + by)));
  }

  look(place) {
    this.at = place;
    this.paint();
  }

  get end() {
    return this.times.length ? this.times[this.times.length - 1] : 0;
  }

  get span() {
    return SPANS_S.find((span) => this.times.length && span >= this.end - this.times[0]) ?? SPANS_S.at(this.times.length ? -1 : 0);
  }

  /** The highest value, and where a value lies between 0, the bottom, and 1. */
  scale() {
    const found = this.values.flat().filter((value) => value !== null && value > 0);
    const most = Math.max(...found, 0);
    if (this.unit !== "ms") {
      const step = most > 0 ? nice(most / 3) : 1;
      const top = Math.max(step, Math.ceil(most / step - 1e-9) * step);
      const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, place) => place * step);
      return { ticks, place: (value) => value / top };
    }
    const low = Math.max(0, DECADES.findLastIndex((decade) => decade <= Math.min(...found, 1)));
    const high = Math.max(low + 1, found.length ? DECADES.findIndex((decade) => decade >= most) : low + 2);
    const bottom = Math.log10(DECADES[low]);
    const height = Math.log10(DECADES[high] ?? DECADES.at(-1)) - bottom;
    return {
      ticks: DECADES.slice(low, high + 1),
      place: (value) => Math.max(0, (Math.log10(Math.max(value, DECADES[low])) - bottom) / height),
    };
  }

  paint() {
    const width = this.figure.clientWidth - 2;
    if (width <= LEFT + RIGHT) return;
    const { ticks, place } = this.scale();
    const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (this.end - time) / this.span);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - place(value));
    const parts = ticks.flatMap((tick) => [
      draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      draw("text", { class: "tick", x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, this.label(tick)),
    ]);
    for (const [ago, anchor] of [[this.span, "start"], [this.span / 2, "middle"], [0, "end"]]) {
      const told = ago === 0 ? "now" : ago < 90 ? `−${ago} s` : `−${ago / 60} min`;
      parts.push(draw("text", { class: "tick", x: x(this.end - ago), y: HEIGHT - 4, "text-anchor": anchor }, told));
    }
    this.lines.forEach((line, number) => {
      parts.push(draw("path", { class: `line ${line.kind}`, d: this.path(this.values[number], x, y) }));
    });
    const at = this.at !== null && this.at < this.times.length ? this.at : null;
    if (at !== null) {
      parts.push(draw("line", { class: "cursor", x1: x(this.times[at]), x2: x(this.times[at]), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    mark(this.svg, "width", width);
    this.svg.replaceChildren(...parts);
    this.words(at);
  }

  path(values, x, y) {
    let path = "";
    let open = false;
    values.forEach((value, place) => {
      if (value === null) {
        open = false;
        return;
      }
      const spot = `${x(this.times[place]).toFixed(1)} ${y(value).toFixed(1)}`;
      // a point alone is a dot: round caps draw it
      path += open ? `L${spot}` : `M${spot}L${spot}`;
      open = true;
    });
    return path;
  }

  words(at) {
    const last = this.times.length - 1;
    const place = at ?? last;
    const told = this.lines.map((_, number) => this.value(this.values[number][place] ?? null));
    told.forEach((text, number) => tell(this.told[number], text));
    const ago = place < 0 ? 0 : Math.round(this.end - this.times[place]);
    tell(this.when, at === null ? "" : `${ago} s ago`);
    const all = this.lines.map((line, number) => `${line.name} ${told[number]}`).join(", ");
    mark(this.figure, "aria-label", `${this.title}, ${at === null ? "last" : `${ago} s ago`}: ${all}`);
  }

  value(value) {
    return this.unit === "ms" ? ms(value) : few(value);
  }

  label(tick) {
    if (this.unit === "ms") return tick >= 1000 ? `${tick / 1000} s` : `${tick} ms`;
    return tick >= 1000 ? `${few(tick / 1000)}k` : few(tick);
  }
}

function nice(value) {
  const decade = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((one) => one * decade >= value) * decade;
  return step < 1 ? 1 : step;
}
