// The page: asks for the state each second, one question at a time, and shows it.  Hidden, it asks nothing; where the
// server does not answer it says so and asks less often.

import { Ask } from "./ask.js";
import { Chart } from "./chart.js";
import { clock, count, few, make, mark, ms, span, tell } from "./dom.js";
import { Pool } from "./pool.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const LONGEST_MS = 15000;
// rates are of so many looks
const LOOKS = 4;
const STAGES = {
  total: "All of it, from nginx to the answer",
  accept: "Accept: until a thread takes it",
  decode: "Decode",
  queue: "Queue: until a mule takes it",
  predict: "Predict",
  encode: "Encode",
};
const PERCENTILES = [
  { name: "p50", kind: "p50" },
  { name: "p90", kind: "p90" },
  { name: "p99", kind: "p99" },
];

const $ = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.states = [];
    this.wait = EVERY_MS;
    this.pool = new Pool($("flow"), $("events"));
    this.ask = new Ask($("ask"), $("answer"));
    this.tiles = new Map();
    this.historyAt = 0;
    this.filter = "";
    this.makeCharts();
    $("filter").addEventListener("input", (event) => {
      this.filter = event.target.value.trim().toLowerCase();
      if (this.states.length) this.showFailures(this.states.at(-1));
    });
    document.addEventListener("visibilitychange", () => this.next(0));
    this.next(0);
  }

  next(wait) {
    clearTimeout(this.timer);
    if (!document.hidden && !this.asking) this.timer = setTimeout(() => this.look(), wait);
  }

  async look() {
    this.asking = true;
    try {
      this.show(await get("console/state.json"));
      if (this.now.at - this.historyAt >= this.everyS || this.historyAt > this.now.at) {
        this.showHistory(await get("console/history.json"));
        this.historyAt = this.now.at;
      }
      this.wait = EVERY_MS;
      tell($("live"), "live");
      mark($("live"), "data-kind", "good");
      mark(document.body, "data-stale", null);
    } catch (error) {
      this.wait = Math.min(LONGEST_MS, this.wait * 2);
      this.states = [];
      tell($("live"), `no answer (${error.message}); asking again in ${Math.round(this.wait / 1000)} s`);
      mark($("live"), "data-kind", "bad");
      mark(document.body, "data-stale", "yes");
    }
    this.asking = false;
    this.next(this.wait);
  }

  everyS = 5;

  get now() {
    return this.states.at(-1);
  }

  show(state) {
    if (this.states.length && this.now.since !== state.since) this.states = [this.now];
    this.states = [...this.states, state].slice(-LOOKS);
    this.showHead(state);
    this.showTiles(state);
    this.pool.show(this.states);
    this.showRefused(state);
    this.showFailures(state);
    this.ask.show(state);
  }

  showHead(state) {
    const model = state.model;
    tell($("model"), model ? `${model.name}, version ${model.version} (${model.engine}) · up for ${span(state.at - state.since)}` : "no replica has loaded the model yet");
    const ready = state.mules.filter((mule) => mule.ready).length;
    const posts = state.mules.filter((mule) => mule.post).length;
    const word = state.ready ? (ready < posts ? `ready, ${ready} of ${posts} mules` : "ready") : state.failed ? "failed" : "not ready";
    tell($("ready"), word);
    mark($("ready"), "data-kind", state.ready ? (ready < posts ? "wait" : "good") : "bad");
    document.title = `${state.ready ? "" : "✗ "}${model ? `${model.name} · ` : ""}Muleteer`;
  }

  showTiles(state) {
    const before = this.states[0];
    const took = state.at - before.at;
    const a = (name) => (took > 0 ? few(Math.max(0, state[name] - before[name]) / took) : "–");
    const refused = (one) => one.requests - one.answered;
    const total = state.latency.stages.total;
    const over = `of ${Math.round(state.latency.over_s)} s`;
    this.tile("answered a second", a("answered"), `${state.answered.toLocaleString("en")} in all`);
    this.tile("rows a second", a("rows"), `${state.rows.toLocaleString("en")} in all`);
    this.tile("half within", ms(total.p50), `p50, ${over}`);
    this.tile("99 of 100 within", ms(total.p99), `p99, ${over}`);
    this.tile("in flight", few(state.queue.waiting), `${state.queue.queued} queued, room for ${state.queue.capacity}`);
    const rate = took > 0 ? Math.max(0, refused(state) - refused(before)) / took : null;
    this.tile("refused a second", few(rate), `${refused(state).toLocaleString("en")} in all`, rate > 0 ? "bad" : null);
  }

  tile(name, value, more, kind = null) {
    let tile = this.tiles.get(name);
    if (!tile) {
      tile = { value: make("dd", { class: "value" }), more: make("dd", { class: "quiet" }) };
      tile.box = make("div", {}, make("dt", {}, name), tile.value, tile.more);
      this.tiles.set(name, tile);
      $("now").append(tile.box);
    }
    tell(tile.value, value);
    tell(tile.more, more);
    mark(tile.box, "data-kind", kind);
  }

  makeCharts() {
    this.charts = {
      rate: new Chart("Requests a second", "", [{ name: "answered", kind: "answered" }, { name: "refused", kind: "refused" }]),
      waits: new Chart("Requests that wait", "", [{ name: "in flight", kind: "answered" }, { name: "queued", kind: "p90" }]),
    };
    for (const [stage, title] of Object.entries(STAGES)) this.charts[stage] = new Chart(title, "ms", PERCENTILES);
    $("charts").append(...Object.values(this.charts).map((chart) => chart.figure));
  }

  showHistory({ every_s: everyS, points }) {
    this.everyS = everyS;
    const times = points.map((point) => point.at);
    const refused = points.map((point) => Object.values(point.refused).reduce((sum, rate) => sum + rate, 0));
    this.charts.rate.show(times, [points.map((point) => point.answered), refused]);
    this.charts.waits.show(times, [points.map((point) => point.in_flight), points.map((point) => point.queued)]);
    for (const stage of Object.keys(STAGES)) {
      this.charts[stage].show(times, PERCENTILES.map(({ name }) => points.map((point) => point.latency_ms[stage][name])));
    }
  }

  showRefused(state) {
    const before = new Map(this.states[0].refused.map((one) => [key(one), one.count]));
    const took = state.at - this.states[0].at;
    const rows = [...state.refused].sort((a, b) => b.count - a.count);
    const most = Math.max(1, ...rows.map((row) => row.count));
    table($("refused"), ["why", "route", "count", "a second"], rows.map((row) => {
      const rate = took > 0 ? (row.count - (before.get(key(row)) ?? 0)) / took : null;
      const share = make("i", { class: "share" });
      share.style.width = `${(100 * row.count) / most}%`;
      const why = [make("b", {}, String(row.status)), " ", make("code", {}, row.code), make("span", { class: "quiet title" }, row.title)];
      return { key: key(row), cells: [why, row.route, [row.count.toLocaleString("en"), share], few(rate)] };
    }), "Nothing has been refused.");
  }

  showFailures(state) {
    const rows = state.failures.filter((one) => [one.id, one.code, one.route, one.status, one.title].join(" ").toLowerCase().includes(this.filter)).slice(0, 30);
    table($("failed"), ["when", "why", "route", "took", "request id"], rows.map((row) => {
      const id = make("button", { type: "button", class: "id", title: "Copy", onclick: () => copy(row.id) }, row.id);
      const why = [make("b", {}, String(row.status)), " ", make("code", {}, row.code), make("span", { class: "quiet title" }, row.title)];
      return { key: `${row.at} ${row.id}`, cells: [clock(row.at), why, row.route, ms(row.took_ms), id] };
    }), this.filter ? "None of the last ones has that." : "No request has failed.");
  }
}

function key(row) {
  return `${row.route} ${row.status} ${row.code}`;
}

/** A table whose rows stay the same elements while their keys are the same and stand in the same order. */
function table(place, head, rows, none) {
  let body = place.querySelector("tbody");
  if (!rows.length) {
    if (body || !place.firstChild || place.textContent !== none) place.replaceChildren(make("p", { class: "quiet" }, none));
    return;
  }
  if (!body) {
    body = make("tbody");
    place.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))), body));
  }
  const kept = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const shown = rows.map((row) => {
    const cells = row.cells.map((cell, number) => make("td", { "data-head": head[number] }, cell));
    const old = kept.get(row.key);
    if (!old) return make("tr", { "data-key": row.key }, cells);
    // the button that has the focus stays
    cells.forEach((cell, number) => {
      if (old.cells[number].textContent !== cell.textContent) old.cells[number].replaceChildren(...cell.childNodes);
    });
    return old;
  });
  if (shown.length !== body.rows.length || shown.some((row, number) => body.rows[number] !== row)) {
    const focused = document.activeElement;
    body.replaceChildren(...shown);
    if (body.contains(focused)) focused.focus();
  }
}

async function copy(id) {
  try {
    await navigator.clipboard.writeText(id);
    tell($("copied"), `${id} is copied.`);
  } catch {
    // not over plain HTTP from another machine
    tell($("copied"), `The browser allows no copying here; the id is ${id}`);
  }
}

async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

new Page();
