// The pool, drawn as what it is: nginx, workers, queue, mules and cache, with the way of a request between them.

import { bytes, clock, count, draw, few, make, mark, ms, tell } from "./dom.js";

// what a state is called, and its kind of colour
const STATES = {
  starting: ["starting", "wait"],
  loading: ["loading", "wait"],
  ready: ["ready", "good"],
  paused: ["paused", "bad"],
  failed: ["failed", "bad"],
  draining: ["draining", "wait"],
  spare: ["spare", "idle"],
  gone: ["gone", "bad"],
};
const DEATHS = {
  killed: "killed",
  out_of_memory: "out of memory",
  crashed: "crashed",
  exited: "exited",
  hung: "hung",
  unresponsive: "unresponsive",
  loading: "loaded for too long",
  unknown: "unknown",
};
// how long a death stays in sight
const DEATH_S = 12;
const SPARKS = 60;
const EVENTS = 60;

export class Pool {
  constructor(flow, events) {
    this.flow = flow;
    this.events = events;
    this.cards = new Map();
    this.workers = new Map();
    this.ways = [];
    this.make();
  }

  make() {
    this.nginx = this.stage("nginx", "keeps connections, refuses what is too much");
    this.nginxFacts = facts(this.nginx, ["reading", "writing", "waiting", "accepted"]);
    this.work = this.stage("workers", "threads decode, wait and encode");
    this.workList = this.work.appendChild(make("ul", { class: "list" }));
    this.queue = this.stage("queue", "those that wait for their answers");
    this.held = make("i", { class: "held" });
    this.queued = make("i", { class: "queued" });
    this.tank = make("div", { class: "tank", role: "meter", "aria-label": "threads that wait", "aria-valuemin": 0 }, this.held, this.queued);
    this.queue.append(this.tank);
    this.queueFacts = facts(this.queue, ["waiting", "with mules", "queued", "oldest", "capacity"]);
    this.mules = this.stage("mules", "each a process with a model of its own");
    this.muleList = this.mules.appendChild(make("ul", { class: "cards" }));
    this.cache = this.stage("cache", "replies in shared memory, and notes of inputs that kill");
    this.cacheFacts = facts(this.cache, ["answers a second", "rows a second", "notes"]);
    const boxes = [this.nginx, this.work, this.queue, this.mules, this.cache];
    boxes.forEach((box, place) => {
      if (place) this.flow.append(this.way());
      this.flow.append(box);
    });
  }

  stage(name, told) {
    return make("div", { class: `stage ${name}` }, make("h3", {}, name), make("p", { class: "quiet told" }, told));
  }

  way() {
    const line = draw("path", { d: "M0 8H30", class: "way" });
    const head = draw("path", { d: "M24 3L30 8L24 13", class: "head" });
    this.ways.push(line);
    return make("div", { class: "arrow", "aria-hidden": "true" }, draw("svg", { viewBox: "0 0 32 16", width: 32, height: 16 }, line, head));
  }

  /** states: the last ones, the oldest first. */
  show(states) {
    const now = states.at(-1);
    const before = states[0];
    const last = states.length > 1 ? states.at(-2) : null;
    const took = now.at - before.at;
    const a = (name) => (took > 0 ? Math.max(0, now[name] - before[name]) / took : null);
    const rate = a("answered");
    for (const way of this.ways) mark(way, "data-pace", rate === null || rate < 0.05 ? "still" : rate < 50 ? "slow" : "fast");
    this.showNginx(now);
    this.showWorkers(now, last);
    this.showQueue(now.queue);
    this.cacheFacts(few(rate), few(a("rows")), `${now.cache.notes} of ${now.cache.capacity.toLocaleString("en")}`);
    const gone = new Set(this.cards.keys());
    for (const mule of now.mules) {
      gone.delete(mule.id);
      this.showMule(mule, before.mules.find((other) => other.id === mule.id), took, now.at);
    }
    for (const id of gone) {
      this.cards.get(id).box.remove();
      this.cards.delete(id);
    }
    if (last) this.tellChanges(last, now);
  }

  showNginx(now) {
    if (!now.nginx) return this.nginxFacts("–", "–", "–", "–");
    const { reading, writing, waiting } = now.nginx.connections;
    this.nginxFacts(reading, writing, waiting, now.nginx.accepted.toLocaleString("en"));
  }

  showWorkers(now, last) {
    for (const worker of now.workers) {
      let row = this.workers.get(worker.id);
      if (!row) {
        row = { fill: make("i"), told: make("span", { class: "number" }), pid: make("span", { class: "quiet" }) };
        row.bar = worker.predicts
          ? make("span", { class: "bar", role: "meter", "aria-label": `threads of worker ${worker.id} that wait`, "aria-valuemin": 0 }, row.fill)
          : make("span", { class: "quiet" }, "health, metrics, this page");
        this.workList.append(make("li", {}, make("b", {}, `worker ${worker.id}`), " ", row.pid, row.bar, row.told));
        this.workers.set(worker.id, row);
      }
      tell(row.pid, worker.pid || "");
      if (worker.predicts) {
        row.fill.style.width = `${(100 * worker.waiting) / worker.threads}%`;
        mark(row.bar, "aria-valuenow", worker.waiting);
        mark(row.bar, "aria-valuemax", worker.threads);
        tell(row.told, `${worker.waiting} of ${worker.threads} threads`);
      }
      const other = last?.workers.find((one) => one.id === worker.id);
      if (other && other.pid !== worker.pid) this.note(now.at, "wait", `worker ${worker.id} was replaced: process ${other.pid} is ${worker.pid} now`);
    }
  }

  showQueue(queue) {
    const held = Math.max(0, queue.waiting - queue.queued);
    this.held.style.height = `${(100 * held) / queue.capacity}%`;
    this.queued.style.height = `${(100 * queue.queued) / queue.capacity}%`;
    mark(this.tank, "aria-valuemax", queue.capacity);
    mark(this.tank, "aria-valuenow", queue.waiting);
    mark(this.tank, "data-full", queue.waiting >= queue.capacity * 0.9 ? "yes" : null);
    this.queueFacts(queue.waiting, held, queue.queued, ms(queue.oldest_s * 1000), queue.capacity);
  }

  card(mule) {
    const card = { sparks: [], diedAt: -Infinity };
    card.state = make("span", { class: "chip" });
    card.name = make("b", {}, `mule ${mule.id}`);
    card.about = make("p", { class: "quiet about" });
    card.fill = make("i");
    card.bar = make("div", { class: "bar", role: "meter", "aria-label": `busy share of mule ${mule.id}`, "aria-valuemin": 0, "aria-valuemax": 100 }, card.fill);
    card.line = draw("path", { class: "spark" });
    card.why = make("p", { class: "why" });
    card.box = make("li", { class: "mule" }, make("div", { class: "top" }, card.name, card.state), card.about, card.bar,
      draw("svg", { class: "sparks", viewBox: `0 0 ${SPARKS} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }, card.line));
    card.facts = facts(card.box, ["rows a second", "rows in a batch", "holds", "memory", "answered", "loaded in", "deaths"]);
    card.box.append(card.why);
    this.muleList.append(card.box);
    this.cards.set(mule.id, card);
    return card;
  }

  showMule(mule, before, took, at) {
    const card = this.cards.get(mule.id) ?? this.card(mule);
    const deaths = Object.values(mule.deaths).reduce((sum, number) => sum + number, 0);
    const was = card.deaths;
    if (was !== undefined && deaths > was) card.diedAt = at;
    card.deaths = deaths;
    const dead = at - card.diedAt < DEATH_S;
    const [word, kind] = STATES[mule.state] ?? [mule.state, "idle"];
    const silent = mule.state === "ready" && !mule.ready;
    tell(card.state, silent ? "silent" : word);
    mark(card.state, "data-kind", silent ? "bad" : kind);
    mark(card.box, "data-kind", kind);
    mark(card.box, "data-died", dead ? "yes" : null);
    const version = mule.version === null ? "" : `version ${mule.version}`;
    const labels = mule.labels.length ? ` (${mule.labels.join(", ")})` : "";
    const about = mule.state === "spare" ? "holds no model; takes over from who dies" : `${version}${labels}`;
    tell(card.about, [about, mule.pid ? `process ${mule.pid}` : "no process"].filter(Boolean).join(" · "));
    const spent = (one) => one.took_s + one.busy_s;
    const share = before && took > 0 ? Math.min(1, Math.max(0, (spent(mule) - spent(before)) / took)) : 0;
    const rows = before && took > 0 ? Math.max(0, mule.rows - before.rows) / took : null;
    const batches = before ? mule.batches - before.batches : 0;
    card.fill.style.width = `${100 * share}%`;
    mark(card.bar, "aria-valuenow", Math.round(100 * share));
    tell(card.name, `mule ${mule.id}`);
    mark(card.bar, "data-told", `${Math.round(100 * share)} % busy`);
    card.sparks = [...card.sparks, share].slice(-SPARKS);
    const first = SPARKS - card.sparks.length;
    mark(card.line, "d", card.sparks.map((one, place) => `${place ? "L" : "M"}${first + place} ${(19 - 18 * one).toFixed(1)}`).join(""));
    const holds = mule.held.tasks ? `${count(mule.held.tasks, "task")}${mule.held.predicting ? `, ${mule.held.predicting} in predict` : ""}` : "nothing";
    card.facts(
      few(rows), batches > 0 ? few((mule.rows - before.rows) / batches) : "–", holds, mule.pid ? bytes(mule.rss) : "–",
      count(mule.tasks, "task"), mule.loads && mule.state !== "spare" ? `${few(mule.load_s)} s` : "–",
      Object.entries(mule.deaths).map(([death, times]) => `${times} ${DEATHS[death] ?? death}`).join(", ") || "none",
    );
    const died = deaths && mule.last_death ? `${dead ? "it" : "the process before"} ${mule.last_death}` : "";
    tell(card.why, [kind === "bad" || silent ? mule.reason : "", died].filter(Boolean).join("; "));
    mark(card.why, "data-kind", kind === "bad" || silent || dead ? "bad" : null);
    mark(card.box, "aria-label", `mule ${mule.id}, ${word}`);
  }

  /** Into the list: what is otherwise than a second ago. */
  tellChanges(last, now) {
    if (now.since !== last.since) return this.note(now.at, "wait", "another uWSGI serves now");
    for (const mule of now.mules) {
      const before = last.mules.find((other) => other.id === mule.id);
      if (!before) continue;
      const sum = (one) => Object.values(one.deaths).reduce((all, number) => all + number, 0);
      if (sum(mule) > sum(before)) {
        const held = before.held.tasks ? `; it held ${count(before.held.tasks, "task")} a moment ago, and others take them` : "";
        this.note(now.at, "bad", `mule ${mule.id}, process ${before.pid}, ${mule.last_death || "died"}${held}`);
      }
      if (mule.post && !before.post) this.note(now.at, "wait", `mule ${mule.id}, which was the spare, takes a post`);
      if (mule.loads > before.loads) this.note(now.at, "good", `mule ${mule.id} is ready with version ${mule.version}, loaded in ${few(mule.load_s)} s`);
      if (mule.failed_loads > before.failed_loads) this.note(now.at, "bad", `mule ${mule.id} could not load the model: ${mule.last_error}`);
      if (mule.state === "spare" && before.state !== "spare") this.note(now.at, "idle", `mule ${mule.id} is the spare now, process ${mule.pid}`);
      if (mule.state === "draining" && before.state !== "draining") this.note(now.at, "wait", `mule ${mule.id} finishes what it holds, and goes`);
    }
  }

  note(at, kind, text) {
    if (!this.noted) this.events.replaceChildren();
    this.noted = true;
    const time = make("time", { datetime: new Date(at * 1000).toISOString() }, clock(at));
    this.events.prepend(make("li", { "data-kind": kind }, time, make("span", {}, text)));
    while (this.events.children.length > EVENTS) this.events.lastChild.remove();
  }
}

/** A list of names and values below what is there; gives what sets the values. */
export function facts(box, names) {
  const values = names.map(() => make("dd"));
  box.append(make("dl", { class: "facts" }, names.map((name, place) => make("div", {}, make("dt", {}, name), values[place]))));
  return (...told) => told.forEach((text, place) => tell(values[place], text));
}
