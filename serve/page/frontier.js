// Quality against cost: every setting of the second stage as a point that can be tried.

import { element, svg } from "./element.js";
import { duration, figure, intervalWords, number, settingWords, signed, whole } from "./words.js";
import { tag } from "./tables.js";

const COSTS = [
  { name: "ms", label: "Time", axis: "milliseconds a user, mean", of: (point) => point.mean_ms, alone: (all) => all.retrieval_ms },
  { name: "cost", label: "Money", axis: "cost of 1,000", of: (point) => point.cost_of_1000, alone: (all) => moneyAlone(all) },
  { name: "tokens", label: "Tokens", axis: "tokens a user, mean", of: (point) => point.tokens, alone: () => 0 },
];
const WIDTH = 860;
const HEIGHT = 400;
const MARGIN = { left: 62, right: 24, top: 22, bottom: 46 };
const SHAPES = [
  (x, y) => `M${x - 5.5} ${y}a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z`,
  (x, y) => `M${x - 5} ${y - 5}h10v10h-10Z`,
  (x, y) => `M${x} ${y - 6.5}l6.2 11h-12.4Z`,
  (x, y) => `M${x} ${y - 7}l7 7l-7 7l-7 -7Z`,
];

export class FrontierPlot {
  /** @param {Object} frontier of report.json. @param {Function} tried gets the setting of a point that was chosen. */
  constructor(frontier, tried) {
    this.frontier = frontier;
    this.tried = tried;
    this.models = [...new Set(frontier.points.map((point) => point.setting.model))];
    this.costs = COSTS.filter((cost) => frontier.points.some((point) => cost.of(point) > 0));
    this.cost = this.costs[0] ?? COSTS[0];
    this.current = 0;
    this.canvas = element("div.wide.plot");
    this.told = element("div.told");
    this.node = element("div.frontier", {}, this.#head(), this.canvas, this.told);
    this.#draw();
  }

  #head() {
    const shapes = this.models.map((model, at) =>
      element("li", {}, svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[at % SHAPES.length](8, 8) })), model),
    );
    const buttons = this.costs.map((cost) =>
      element("button", { type: "button", ariaPressed: String(cost === this.cost), onclick: (event) => this.#turn(cost, event) }, cost.label),
    );
    return element(
      "div.plot-head",
      {},
      element("ul.key", {}, ...shapes, element("li", {}, element("i.full"), "no other beats it"), element("li", {}, element("i.hollow"), "beaten")),
      element("div.segments.slim", { role: "group", ariaLabel: "What cost means" }, ...buttons),
    );
  }

  #turn(cost, event) {
    this.cost = cost;
    for (const button of event.target.parentElement.children) button.ariaPressed = String(button === event.target);
    this.#draw();
  }

  #draw() {
    const { points, retrieval_ndcg10: base } = this.frontier;
    this.points = [...points].sort((one, other) => this.cost.of(one) - this.cost.of(other));
    this.alone = this.cost.alone(this.frontier);
    const costs = [this.alone, ...this.points.map(this.cost.of)];
    const values = [base, ...this.points.map((point) => point.ndcg10)];
    this.x = axis(costs, [MARGIN.left, WIDTH - MARGIN.right], { log: costs.every((cost) => cost > 0) });
    this.y = axis(values, [HEIGHT - MARGIN.bottom, MARGIN.top]);
    this.detail = svg("g", { class: "detail" });
    this.dots = this.points.map((point, at) => this.#dot(point, at));
    const picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `NDCG@10 against ${this.cost.axis}` },
      ...this.#grid(),
      ...this.#line(),
      this.detail,
      ...this.dots,
    );
    this.canvas.replaceChildren(picture);
    const front = this.points.findLastIndex((point) => point.on_front);
    this.#tell(front < 0 ? 0 : front);
  }

  #grid() {
    const middle = (MARGIN.left + WIDTH - MARGIN.right) / 2;
    const rows = this.y.ticks.map((value) =>
      svg("g", {}, svg("line", { class: "grid", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: this.y(value), y2: this.y(value) }),
        svg("text", { x: MARGIN.left - 10, y: this.y(value) + 4, class: "end" }, value.toFixed(this.y.digits))));
    const columns = this.x.ticks.map((value) =>
      svg("text", { x: this.x(value), y: HEIGHT - MARGIN.bottom + 20, class: "middle" }, number(value)));
    const base = this.y(this.frontier.retrieval_ndcg10);
    return [
      ...rows,
      ...columns,
      svg("text", { x: middle, y: HEIGHT - 6, class: "middle" }, this.cost.axis),
      svg("text", { x: 4, y: 12 }, "NDCG@10"),
      svg("line", { class: "base", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: base, y2: base }),
      svg("text", { class: "end", x: WIDTH - MARGIN.right, y: base + 16 }, "retrieval alone"),
    ];
  }

  /** A staircase from retrieval alone over the front: between two points, the cheaper is what one can have. */
  #line() {
    const front = this.points.filter((point) => point.on_front);
    const start = [this.x(this.alone), this.y(this.frontier.retrieval_ndcg10)];
    let path = `M${start[0]} ${start[1]}`;
    let best = this.frontier.retrieval_ndcg10;
    for (const point of front) {
      if (point.ndcg10 <= best) continue; // by another cost, a point of the front may be beaten
      best = point.ndcg10;
      path += `H${this.x(this.cost.of(point))}V${this.y(point.ndcg10)}`;
    }
    return [svg("path", { class: "front", d: path }), svg("circle", { class: "start", cx: start[0], cy: start[1], r: 4.5 })];
  }

  #dot(point, at) {
    const [x, y] = [this.x(this.cost.of(point)), this.y(point.ndcg10)];
    const shape = SHAPES[this.models.indexOf(point.setting.model) % SHAPES.length];
    const label = `${settingWords(point.setting)}: NDCG@10 ${figure(point.ndcg10)}, ${point.test.verdict}, ${duration(point.mean_ms)}`;
    return svg(
      "g",
      {
        class: point.on_front ? "dot full" : "dot",
        role: "button",
        tabindex: at === this.current ? 0 : -1,
        "aria-label": `Try ${label}`,
        onclick: () => this.tried(point.setting),
        onpointerenter: () => this.#tell(at),
        onfocus: () => this.#tell(at),
        onkeydown: (event) => this.#key(event, at),
      },
      svg("circle", { class: "reach", cx: x, cy: y, r: 12 }),
      svg("path", { d: shape(x, y) }),
    );
  }

  #key(event, at) {
    const last = this.points.length - 1;
    const to = { ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.dots[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.tried(this.points[at].setting);
    }
  }

  /** What the point says, below the plot, and its interval beside it. */
  #tell(at) {
    const point = this.points[at];
    if (!point) return;
    this.dots.forEach((dot, place) => {
      dot.setAttribute("tabindex", place === at ? 0 : -1);
      dot.classList.toggle("on", place === at);
    });
    this.current = at;
    const { test } = point;
    const base = this.frontier.retrieval_ndcg10;
    const x = this.x(this.cost.of(point));
    const clip = (value) => Math.max(MARGIN.top - 8, Math.min(HEIGHT - MARGIN.bottom + 4, this.y(base + value)));
    this.detail.replaceChildren(svg("line", { x1: x, x2: x, y1: clip(test.low), y2: clip(test.high) }));
    const fact = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
    this.told.replaceChildren(
      element("p", {}, element("strong", {}, settingWords(point.setting)), " ", tag(test.verdict)),
      element(
        "dl",
        {},
        fact("NDCG@10", figure(point.ndcg10)),
        fact("gain", `${signed(test.difference)} (${intervalWords(test)})`),
        fact("time, mean", duration(point.mean_ms)),
        fact("tokens a user", whole(point.tokens)),
        fact("cost of 1,000", number(point.cost_of_1000)),
      ),
      element("button.small", { type: "button", onclick: () => this.tried(point.setting) }, "Try it"),
    );
  }
}

/** A scale with a tenth of air at both ends: value → pixel, with `ticks` and the `digits` that tell them apart. */
function axis(values, [from, to], { log = false } = {}) {
  const measure = log ? Math.log10 : (value) => value;
  const [low, high] = [Math.min(...values), Math.max(...values)].map(measure);
  const air = (high - low || Math.abs(high) || 1) * 0.07;
  const [start, end] = [low - air, high + air];
  const scale = (value) => from + ((measure(value) - start) / (end - start)) * (to - from);
  const ticks = log ? logTicks(10 ** start, 10 ** end) : evenTicks(start, end);
  const digits = ticks.length > 1 ? Math.max(0, -Math.floor(Math.log10(ticks[1] - ticks[0] + 1e-12))) : 3;
  return Object.assign(scale, { ticks, digits });
}

function evenTicks(start, end) {
  const rough = (end - start) / 7;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(start / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(end / step + 1e-9) - first + 1) }, (_, at) => (first + at) * step).filter((tick) => tick > -step / 2 || start < -step);
}

function logTicks(start, end) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(start)); power <= Math.ceil(Math.log10(end)); power += 1) {
    for (const factor of [1, 2, 5]) {
      const tick = factor * 10 ** power;
      if (tick >= start && tick <= end) ticks.push(tick);
    }
  }
  return ticks;
}

/** What a thousand users cost by retrieval alone: the price of its time, told by any point without tokens or by shares. */
function moneyAlone({ points, retrieval_ms: ms }) {
  const priced = points.filter((point) => point.cost_of_1000 > 0 && point.mean_ms > 0);
  return priced.length ? Math.min(...priced.map((point) => (point.cost_of_1000 * ms) / point.mean_ms)) : 0;
}
