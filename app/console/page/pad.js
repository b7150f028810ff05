// A pad to draw on, and what the model gets of it: values made as those of the images that such models are trained on.
//
// 8 x 8 values are counts of black points: UCI's digits fill 32 x 32 points, of which three tenths are black whatever the
// digit, and were counted in blocks of 4 x 4.  Larger ones are made as MNIST's: scaled to 20 of 28 points, their mass in
// the middle.  So the width of a line is theirs, whatever the size of the drawing.

import { make, tell } from "./dom.js";

// points of the side that is counted, of the box for the drawing, and of a line's width; the share that is black, where
// that is what they have in common
const COUNTED = { points: 32, box: 32, wide: 27, line: 4.5, black: 0.305 };
const SCANNED = { points: 28, box: 20, wide: 20, line: 2.2, mass: true };
// lines are made wider or narrower so often, and within these bounds
const TRIES = 4;
const [THIN, THICK] = [2.5, 10];
// how much finer than a point it is drawn
const FINE = 4;
const VIEW = 280;
const PAUSE_MS = 350;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Pad {
  /** side: values of one; ink: the darkest value; changed: called when a stroke or a value is done. */
  constructor(side, ink, whole, changed) {
    this.side = side;
    this.ink = ink;
    this.whole = whole;
    this.changed = changed;
    this.form = side <= 8 ? COUNTED : SCANNED;
    this.strokes = [];
    this.values = blank(side);
    this.cursor = null;
    this.canvas = make("canvas", { class: "pad", width: VIEW, height: VIEW, role: "img", "aria-label": "A pad to draw on with the mouse, a finger or a pen" });
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.up());
    this.seen = make("canvas", {
      class: "seen", width: side * 16, height: side * 16, tabindex: "0", role: "application",
      "aria-label": `What the model gets, ${side} by ${side} values. Arrow keys move, space blackens or clears a value, Delete clears all.`,
      onkeydown: (event) => this.key(event),
      onblur: () => this.point(null),
    });
    this.told = make("p", { class: "quiet", role: "status" });
    this.fit = make("input", { type: "checkbox", checked: true, onchange: () => this.done() });
    this.box = make("div", { class: "pads" },
      make("div", {}, this.canvas),
      make("div", { class: "gets" }, make("p", { class: "quiet" }, "What the model gets:"), this.seen, this.told,
        make("label", {}, this.fit, " fitted as its training images are"),
        make("button", { type: "button", onclick: () => this.clear() }, "Clear")),
    );
    this.paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
    document.addEventListener("theme", () => this.paint());
  }

  spot(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  down(event) {
    if (event.button) return;
    event.preventDefault();
    clearTimeout(this.timer);
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = [this.spot(event)];
    this.strokes.push(this.stroke);
    this.paint();
  }

  move(event) {
    if (!this.stroke) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const one of between.length ? between : [event]) this.stroke.push(this.spot(one));
    this.paint();
  }

  up() {
    if (!this.stroke) return;
    this.stroke = null;
    // another stroke may follow
    this.timer = setTimeout(() => this.done(), PAUSE_MS);
  }

  done() {
    if (!this.strokes.length) return;
    this.values = this.read();
    this.paint();
    this.changed();
  }

  clear() {
    clearTimeout(this.timer);
    this.strokes = [];
    this.values = blank(this.side);
    this.paint();
    this.changed(true);
  }

  key(event) {
    const [row, column] = this.cursor ?? [0, 0];
    const last = this.side - 1;
    if (STEPS[event.key]) {
      const [down, right] = STEPS[event.key];
      const within = (place) => Math.min(last, Math.max(0, place));
      this.point(this.cursor ? [within(row + down), within(column + right)] : [0, 0]);
    } else if (event.key === " " || event.key === "Enter") {
      this.values = this.values.map((line) => [...line]);
      this.values[row][column] = this.values[row][column] > 0 ? 0 : this.ink;
      this.strokes = [];
      this.point([row, column]);
      this.changed(true);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }

  point(place) {
    this.cursor = place;
    tell(this.told, place ? `row ${place[0] + 1}, column ${place[1] + 1}: ${this.values[place[0]][place[1]]}` : "");
    this.paint();
  }

  /** The strokes as values. */
  read() {
    const fits = this.fit.checked;
    let line = this.form.line;
    let ink = this.inked(line, fits);
    for (let tries = 0; fits && this.form.black && tries < TRIES; tries++) {
      line = Math.min(THICK, Math.max(THIN, (line * this.form.black) / ink.share));
      ink = this.inked(line, fits);
    }
    const [right, down] = this.form.mass && fits ? middle(ink) : [0, 0];
    const step = ink.size / this.side;
    return blank(this.side).map((cells, row) => cells.map((_, column) => {
      let sum = 0;
      let all = 0;
      for (let y = Math.floor(row * step); y < (row + 1) * step; y++) {
        for (let x = Math.floor(column * step); x < (column + 1) * step; x++) {
          sum += ink.at(x - right, y - down);
          all += 255;
        }
      }
      const value = (sum / all) * this.ink;
      return this.whole || this.ink > 1 ? Math.round(value) : Math.round(value * 1000) / 1000;
    }));
  }

  /** The strokes as points that are more or less black, 0 to 255, and the share of all that is. */
  inked(line, fits) {
    const { points } = this.form;
    const size = points * FINE;
    const canvas = make("canvas", { width: size, height: size });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const place = fits ? this.fitted(line) : (x, y) => [x * points, y * points];
    stroke(context, this.strokes.map((one) => one.map(([x, y]) => place(x, y).map((at) => at * FINE))), line * FINE, "#000");
    const black = context.getImageData(0, 0, size, size).data;
    let sum = 0;
    for (let byte = 3; byte < black.length; byte += 4) sum += black[byte];
    const at = (x, y) => (x < 0 || y < 0 || x >= size || y >= size ? 0 : black[4 * (y * size + x) + 3]);
    return { size, at, share: Math.max(1e-3, sum / (255 * size * size)) };
  }

  /** Where a point of the pad lies in the box that training images fill. */
  fitted(line) {
    const spots = this.strokes.flat();
    const [left, top] = [0, 1].map((axis) => Math.min(...spots.map((spot) => spot[axis])));
    const [right, bottom] = [0, 1].map((axis) => Math.max(...spots.map((spot) => spot[axis])));
    const { points, box, wide } = this.form;
    const scale = Math.min((box - line) / Math.max(bottom - top, 0.02), (wide - line) / Math.max(right - left, 0.02));
    return (x, y) => [points / 2 + (x - (left + right) / 2) * scale, points / 2 + (y - (top + bottom) / 2) * scale];
  }

  paint() {
    // as the style sheet has them in this theme
    const { color: ink, caretColor: accent } = getComputedStyle(this.seen);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, VIEW, VIEW);
    stroke(context, this.strokes.map((one) => one.map(([x, y]) => [x * VIEW, y * VIEW])), VIEW / 14, ink);
    const seen = this.seen.getContext("2d");
    seen.clearRect(0, 0, this.seen.width, this.seen.height);
    this.values.forEach((line, row) => line.forEach((value, column) => {
      seen.globalAlpha = Math.min(1, Math.max(0, value / this.ink));
      seen.fillStyle = ink;
      seen.fillRect(column * 16, row * 16, 16, 16);
    }));
    if (this.side <= 16) {
      seen.globalAlpha = 0.15;
      seen.fillStyle = ink;
      for (let at = 1; at < this.side; at++) {
        seen.fillRect(at * 16, 0, 1, this.seen.height);
        seen.fillRect(0, at * 16, this.seen.width, 1);
      }
    }
    seen.globalAlpha = 1;
    if (this.cursor) {
      seen.strokeStyle = accent;
      seen.lineWidth = 4;
      seen.strokeRect(this.cursor[1] * 16 + 2, this.cursor[0] * 16 + 2, 12, 12);
    }
  }
}

function blank(side) {
  return Array.from({ length: side }, () => Array(side).fill(0));
}

function stroke(context, strokes, width, colour) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points.slice(1)) context.lineTo(...point);
    if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
    context.stroke();
  }
}

/** How far the mass of the ink is from the middle. */
function middle({ at, size }) {
  let [sum, right, down] = [0, 0, 0];
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      sum += at(x, y);
      right += at(x, y) * x;
      down += at(x, y) * y;
    }
  }
  const off = (moment) => (sum ? Math.round((size - 1) / 2 - moment / sum) : 0);
  return [off(right), off(down)];
}
