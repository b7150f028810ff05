// A form made from the signature, which asks POST /predict; and the answer, with where its time went.

import { count, few, make, mark, ms, tell } from "./dom.js";
import { Pad } from "./pad.js";

const SIDES = [8, 16, 28, 32];
const PARTS = ["decode", "queue", "predict", "encode"];
const NAMES = { draw: "Draw", fields: "Fields", image: "Image", json: "JSON" };
const IMAGES = "image/png,image/jpeg,image/webp";
// scores that are shown
const MOST_BARS = 10;
const WHOLE = /^u?int/;

export class Ask {
  constructor(form, answer) {
    this.form = form;
    this.answer = answer;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
  }

  /** Make the form where the model takes something else than before. */
  show({ model, max_body_bytes: maxBytes }) {
    this.maxBytes = maxBytes;
    const told = JSON.stringify(model && [model.name, model.signature.inputs, model.inks]);
    if (told === this.told) return;
    this.told = told;
    this.model = model;
    if (model) this.make();
    else this.form.replaceChildren(make("p", { class: "quiet" }, "There is no model yet."));
  }

  make() {
    const inputs = this.model.signature.inputs;
    this.panes = {};
    const square = inputs.length === 1 ? sideOf(inputs[0]) : 0;
    if (square) this.panes.draw = this.drawing(inputs[0], square);
    if (inputs.every((spec) => !spec.shape.length)) this.panes.fields = this.fields(inputs);
    if (inputs.length === 1 && isImage(inputs[0])) this.panes.image = this.image(inputs[0]);
    this.editor = make("textarea", { id: "json", rows: 12, spellcheck: "false", autocomplete: "off", autocapitalize: "off", "aria-label": "The body, in JSON" });
    this.editor.value = pretty(sample(inputs));
    this.panes.json = make("div", {}, make("p", { class: "quiet" }, "The body of POST /predict."), this.editor);
    const names = Object.keys(this.panes);
    const modes = names.map((name) => make("label", { class: "mode" },
      make("input", { type: "radio", name: "mode", value: name, checked: name === names[0], onchange: () => this.choose(name) }), make("span", {}, NAMES[name])));
    const takes = inputs.map((spec) => `${spec.name}: ${spec.dtype}${spec.shape.length ? `[${spec.shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]` : ""}`);
    this.form.replaceChildren(
      make("p", { class: "quiet takes" }, "takes ", make("code", {}, takes.join(", "))),
      make("fieldset", { class: "modes" }, make("legend", { class: "hidden" }, "How to give the input"), modes),
      ...Object.values(this.panes),
      make("p", { class: "go" }, make("button", { type: "submit", class: "primary" }, "Predict")),
    );
    this.mode = null;
    this.choose(names[0]);
  }

  choose(mode) {
    if (mode === "json" && this.mode && this.mode !== "image") {
      // what was drawn or filled in, to be changed by hand
      try {
        this.editor.value = this.body(this.mode);
      } catch {
        // it stays as it was
      }
    }
    this.mode = mode;
    for (const [name, pane] of Object.entries(this.panes)) pane.hidden = name !== mode;
  }

  drawing(spec, side) {
    const ink = this.model.inks[spec.name] || (side === 8 ? 16 : WHOLE.test(spec.dtype) ? 255 : 1);
    // a stroke is asked for at once; what is set by keys, or cleared, waits for the button
    this.pad = new Pad(side, ink, WHOLE.test(spec.dtype), (later) => later || this.send());
    const inks = make("select", { onchange: (event) => { this.pad.ink = Number(event.target.value); this.pad.done(); } },
      [1, 16, 255].map((one) => make("option", { value: one, selected: one === ink }, String(one))));
    return make("div", {}, this.pad.box, make("label", { class: "quiet" }, "black is ", inks));
  }

  fields(inputs) {
    this.controls = inputs.map((spec) => {
      const id = `field-${spec.name}`;
      const value = spec.sample ?? spec.default ?? "";
      let control;
      if (spec.dtype === "bool") control = make("input", { id, type: "checkbox", checked: value === true });
      else if (spec.dtype === "string" && inputs.length === 1) control = make("textarea", { id, rows: 4 });
      else control = make("input", { id, type: "text", inputmode: spec.dtype === "string" ? "text" : "decimal", autocomplete: "off" });
      if (spec.dtype !== "bool") control.value = typeof value === "object" ? "" : String(value);
      return { spec, control, label: make("label", { for: id }, spec.name, make("span", { class: "quiet" }, ` ${spec.dtype}`)) };
    });
    return make("div", { class: "fields" }, this.controls.map(({ control, label }) => make("div", {}, label, control)));
  }

  image(spec) {
    this.file = make("input", { id: "file", type: "file", accept: IMAGES, onchange: () => this.preview() });
    this.shown = make("img", { class: "shown", alt: "The image that will be sent", hidden: true });
    const told = spec.shape.length ? "It is resized to what the model takes, 0 to 255." : "The file itself is the input.";
    return make("div", {}, make("p", {}, make("label", { for: "file" }, "A PNG, JPEG or WebP file"), " ", this.file), this.shown, make("p", { class: "quiet" }, told));
  }

  preview() {
    URL.revokeObjectURL(this.shown.src);
    const file = this.file.files[0];
    this.shown.hidden = !file;
    if (file) this.shown.src = URL.createObjectURL(file);
  }

  /** The body that a pane makes.  Throws a sentence. */
  body(mode) {
    const inputs = this.model.signature.inputs;
    if (mode === "json") return this.editor.value;
    if (mode === "draw") {
      const values = this.pad.values;
      return pretty(wrapped(inputs, { [inputs[0].name]: shaped(values, inputs[0].shape) }));
    }
    // by hand: a number of 64 bits is none of JavaScript's
    const members = this.controls.map(({ spec, control }) => `${JSON.stringify(spec.name)}: ${literal(spec, control)}`);
    const row = `{${members.join(", ")}}`;
    return clashes(inputs) ? `{"instances": [${row}]}` : row;
  }

  async send() {
    let body;
    let type = "application/json";
    try {
      if (this.mode === "image") {
        body = this.file.files[0];
        if (!body) throw new Error("Choose a file first.");
        type = body.type;
      } else {
        body = this.body(this.mode);
        if (this.mode === "json") JSON.parse(body.replace(/\b(NaN|-?Infinity)\b/g, "0"));
      }
      const size = body.size ?? new Blob([body]).size;
      if (size > this.maxBytes) throw new Error(`The body has ${size} bytes, and max_body_bytes in uwsgi.ini is ${this.maxBytes}.`);
    } catch (error) {
      return this.fail(error instanceof SyntaxError ? `This is not JSON: ${error.message}` : error.message);
    }
    const number = (this.sent = (this.sent ?? 0) + 1);
    mark(this.answer, "aria-busy", "true");
    const start = performance.now();
    try {
      const response = await fetch("predict", { method: "POST", body, headers: { "Content-Type": type, Accept: "application/json" } });
      const text = await response.text();
      // another one was sent meanwhile
      if (number === this.sent) this.tell(response, text, performance.now() - start);
    } catch (error) {
      if (number === this.sent) this.fail(`No answer came: ${error.message}`);
    }
    if (number === this.sent) mark(this.answer, "aria-busy", null);
  }

  fail(text) {
    mark(this.answer, "aria-busy", null);
    this.answer.replaceChildren(make("p", { class: "problem" }, text));
  }

  tell(response, text, took) {
    const value = parsed(text);
    const id = response.headers.get("X-Request-ID") ?? "";
    const version = response.headers.get("X-Model-Version");
    const head = make("p", { class: "told" },
      make("span", { class: "chip", "data-kind": response.ok ? "good" : "bad" }, `${response.status} ${response.statusText}`.trim()),
      make("span", {}, ms(took)), version ? make("span", {}, `version ${version}`) : null,
      make("span", { class: "quiet" }, "id ", make("code", { class: "request" }, id)));
    const parts = response.ok ? this.result(value) : problem(value, text, response);
    const raw = make("details", {}, make("summary", {}, "The body"), make("pre", {}, text));
    this.answer.replaceChildren(...[head, ...parts, timing(response.headers.get("Server-Timing"), took), raw].filter(Boolean));
  }

  result(value) {
    let row = value?.predictions?.[0] ?? value ?? null;
    const outputs = this.model.signature.outputs;
    if (row === null || typeof row !== "object" || Array.isArray(row)) row = { [outputs[0].name]: row };
    const scores = Object.entries(row).find(([, one]) => isScores(one));
    const single = Object.entries(row).filter(([, one]) => one === null || typeof one !== "object");
    if (!scores) {
      return single.map(([name, one]) => make("p", { class: "single" }, make("span", { class: "quiet" }, name), make("output", { class: String(one).length > 12 ? "long" : "big" }, String(one))));
    }
    const best = scores[1].indexOf(Math.max(...scores[1]));
    const named = single.find(([, one]) => typeof one === "string" || Number.isInteger(one));
    return [
      make("div", { class: "scores" },
        make("p", { class: "single" }, make("span", { class: "quiet" }, named ? named[0] : `most of ${scores[0]}`), make("output", { class: "big" }, String(named ? named[1] : best))),
        bars(scores[0], scores[1], best)),
    ];
  }
}

function bars(name, scores, best) {
  const parts = scores.every((score) => score >= 0 && score <= 1);
  const most = parts ? 1 : Math.max(...scores);
  const least = parts ? 0 : Math.min(0, ...scores);
  let shown = scores.map((score, place) => ({ score, place }));
  if (shown.length > MOST_BARS) shown = shown.sort((a, b) => b.score - a.score).slice(0, MOST_BARS);
  const rows = shown.map(({ score, place }) => {
    const fill = make("i");
    fill.style.width = `${(100 * (score - least)) / (most - least || 1)}%`;
    return make("li", { class: place === best ? "best" : null }, make("b", {}, String(place)), make("span", { class: "bar" }, fill),
      make("span", { class: "number" }, parts ? `${(100 * score).toFixed(1)} %` : few(score)));
  });
  return make("ol", { class: "classes", "aria-label": scores.length > MOST_BARS ? `the ${MOST_BARS} highest of ${scores.length} ${name}` : name }, rows);
}

/** Server-Timing as one bar: its parts, and what is left of the time until the answer was here. */
function timing(header, took) {
  if (!header) return null;
  const found = Object.fromEntries([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map((match) => [match[1], Number(match[2])]));
  const parts = PARTS.filter((part) => part in found).map((part) => [part, found[part]]);
  const rest = took - parts.reduce((sum, [, one]) => sum + one, 0);
  if (rest > 0) parts.push(["rest", rest]);
  const whole = parts.reduce((sum, [, one]) => sum + one, 0) || 1;
  const bar = make("div", { class: "timing", "aria-hidden": "true" });
  const keys = parts.map(([part, one]) => {
    const segment = make("i", { class: part });
    segment.style.flexGrow = String(one / whole);
    bar.append(segment);
    return make("li", {}, make("i", { class: part }), part === "rest" ? "nginx, network, browser" : part, make("b", {}, ms(one)));
  });
  return make("div", { class: "times" }, make("p", { class: "quiet" }, "Where the time went"), bar, make("ul", { class: "keys" }, keys));
}

function problem(value, text, response) {
  const retry = response.headers.get("Retry-After");
  return [
    make("p", { class: "problem" }, make("b", {}, value?.title ?? response.statusText), value?.code ? make("code", {}, value.code) : null),
    make("p", {}, value?.detail ?? text.slice(0, 500)),
    retry ? make("p", { class: "quiet" }, `It may help to try again in ${count(Number(retry), "second")}.`) : null,
  ].filter(Boolean);
}

function isScores(value) {
  return Array.isArray(value) && value.length > 1 && value.every((one) => typeof one === "number");
}

/** The side of a square of numbers that can be drawn, 0 where it is none. */
function sideOf({ dtype, shape }) {
  if (dtype === "string" || dtype === "bool") return 0;
  const sizes = shape.filter((size) => size !== 1);
  if (sizes.length === 2 && sizes[0] === sizes[1]) return SIDES.includes(sizes[0]) ? sizes[0] : 0;
  const side = Math.sqrt(sizes[0]);
  return sizes.length === 1 && (side === 8 || side === 28) ? side : 0;
}

/** Whether the media types of images are for an input. */
function isImage({ dtype, shape }) {
  if (dtype === "string") return shape.length === 0;
  if (shape.length === 2) return true;
  return shape.length === 3 && (shape[2] === 1 || shape[2] === 3 || shape[0] === 3);
}

function shaped(values, shape) {
  const flat = values.flat();
  const build = (sizes, start) => {
    if (!sizes.length) return flat[start];
    const step = sizes.slice(1).reduce((product, size) => product * size, 1);
    return Array.from({ length: sizes[0] }, (_, place) => build(sizes.slice(1), start + place * step));
  };
  return build(shape, 0);
}

function sample(inputs) {
  const zeros = ({ dtype, shape }) => {
    const one = dtype === "string" ? "" : dtype === "bool" ? false : 0;
    return shape.reduceRight((inner, size) => Array.from({ length: size < 0 ? 1 : size }, () => structuredClone(inner)), one);
  };
  return wrapped(inputs, Object.fromEntries(inputs.map((spec) => [spec.name, spec.sample ?? spec.default ?? zeros(spec)])));
}

/** Whether one row would be taken for another form of the body. */
function clashes(inputs) {
  return inputs.some((spec) => spec.name === "instances" || spec.name === "inputs");
}

function wrapped(inputs, row) {
  return clashes(inputs) ? { instances: [row] } : row;
}

function literal({ name, dtype }, control) {
  if (dtype === "bool") return String(control.checked);
  if (dtype === "string") return JSON.stringify(control.value);
  const text = control.value.trim();
  if (/^(NaN|-?Infinity)$/.test(text) && !WHOLE.test(dtype)) return text;
  if (!/^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text)) throw new Error(`${name} is ${text ? JSON.stringify(text) : "empty"}; expected a number (${dtype}).`);
  return text;
}

function parsed(text) {
  // an integer that JavaScript would round stays as it is written; NaN is a number here, and none of JSON
  const exact = text.replace(/(?<=[[{,:]\s*)(-?\d{16,})(?=\s*[\],}])/g, '"$1"');
  for (const one of [exact, text, exact.replace(/(?<=[[,:]\s*)(NaN|-?Infinity)(?=\s*[\],}])/g, "null")]) {
    try {
      return JSON.parse(one);
    } catch {
      // the next
    }
  }
  return undefined;
}

/** JSON in which a list of numbers stands on one line. */
function pretty(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}  `;
  const entries = Array.isArray(value) ? value.map((one) => pretty(one, deeper)) : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pretty(one, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const nested = Object.values(value).some((one) => one !== null && typeof one === "object");
  const flat = open + entries.join(", ") + close;
  return !nested && (flat.length < 110 || Array.isArray(value)) ? flat : `${open}\n${deeper}${entries.join(`,\n${deeper}`)}\n${indent}${close}`;
}
