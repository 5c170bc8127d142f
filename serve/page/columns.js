// Two columns, after retrieval and after reranking, and for each item why it is there.

import { element, unseen } from "./element.js";
import { Lines } from "./lines.js";
import { share, signed } from "./words.js";

const TINTS = 6;

/** The order that the service gave, or the one that the reranker's own scores would give. */
export const FUSED = "fused";
export const ALONE = "alone";

/** One answer as two orders of the same items: what stood where before, and what stands where now. */
export class Orders {
  constructor(items, k, view) {
    this.before = [...items].sort((one, other) => one.retrieval_rank - other.retrieval_rank);
    const last = items.length + 1;
    this.after =
      view === ALONE
        ? [...this.before].sort((one, other) => (one.rerank_rank ?? last) - (other.rerank_rank ?? last))
        : items;
    this.place = new Map(this.after.map((item, at) => [item, at + 1]));
    this.shownBefore = this.before.filter((item) => item.retrieval_rank <= k);
    this.shownAfter = this.after.slice(0, k);
    this.entering = this.before.filter((item) => item.retrieval_rank > k && this.place.get(item) <= k);
    this.leaving = this.after.filter((item) => this.place.get(item) > k && item.retrieval_rank <= k);
  }

  get moved() {
    return this.shownAfter.filter((item) => this.place.get(item) !== item.retrieval_rank).length;
  }

  kind(item, k) {
    const [was, is] = [item.retrieval_rank, this.place.get(item)];
    if (was > k) return "enters";
    if (is > k) return "leaves";
    return is < was ? "up" : is > was ? "down" : "same";
  }
}

/**
 * Two columns with lines between, or one where nothing was reranked.
 * @param {Object} answer of the service.
 * @param {Object} how
 * @param {number} how.k items shown.
 * @param {string} how.view FUSED or ALONE.
 * @param {boolean} how.reranked
 * @param {Function} how.turn called with the other view.
 */
export function columns(answer, { k, view, reranked, turn }) {
  const orders = new Orders(answer.items, k, view);
  const tints = tintsOf(orders.before);
  const after = (items) => items.map((item) => afterRow(item, orders, { k, tints, reranked }));
  if (!reranked) {
    const section = element("section.after", {}, heading("After retrieval"), list(after(orders.shownAfter)));
    return element("div.columns.one", {}, section, legend(tints));
  }
  const before = (items) => items.map((item) => beforeRow(item, orders, { k, tints }));
  const lines = new Lines();
  const left = column("before", heading("After retrieval"), [
    list(before(orders.shownBefore)),
    beyond("from further down", before(orders.entering)),
  ]);
  const right = column("after", heading("After reranking", viewSwitch(view, turn)), [
    list(after(orders.shownAfter)),
    beyond("no longer shown", after(orders.leaving)),
  ]);
  lines.node.style.gridRow = left.style.gridRow;
  const node = element("div.columns.two", {}, left, lines.node, right, legend(tints));
  const drawn = [...orders.shownBefore, ...orders.entering];
  const pairs = drawn.map((item) => ({
    id: item.item_id,
    from: rowOf(left, item),
    to: rowOf(right, item),
    kind: orders.kind(item, k),
  }));
  lines.join(pairs);
  node.addEventListener("toggle", () => lines.draw(), true);
  light(node);
  return node;
}

/** Rows of both columns share the lines of one grid, so that equal places stand at equal heights. */
function column(kind, head, lists) {
  const parts = lists.filter(Boolean);
  const lines = parts.reduce((sum, part) => sum + part.linesOfGrid, 1);
  const node = element(`section.${kind}`, {}, head, ...parts);
  node.style.gridRow = `1 / span ${lines}`;
  return node;
}

function list(rows) {
  return spanning(element("ol.rows", {}, ...rows), rows.length);
}

function spanning(node, lines) {
  node.style.gridRow = `span ${lines}`;
  return Object.assign(node, { linesOfGrid: lines });
}

function heading(text, more = null) {
  return element("div.heading", {}, element("h3", {}, text), more);
}

function viewSwitch(view, turn) {
  const button = (kind, label) =>
    element("button", { type: "button", ariaPressed: String(view === kind), onclick: () => turn(kind) }, label);
  return element(
    "div.segments.slim",
    { role: "group", ariaLabel: "Which order" },
    button(FUSED, "The answer"),
    button(ALONE, "Reranker alone"),
  );
}

function beyond(words, rows) {
  if (!rows.length) return null;
  return spanning(element("div.beyond", {}, element("p", {}, words), list(rows)), rows.length + 1);
}

function beforeRow(item, orders, { k, tints }) {
  const [was, is] = [item.retrieval_rank, orders.place.get(item)];
  const now = is === was ? "stays" : is > k ? `now ${is}, not shown` : `now ${is}`;
  return element(
    "li.row",
    { data: { item: item.item_id } },
    element(
      "div.line-up",
      {},
      element("span.place", {}, was),
      element("span.body", {}, element("span.title", { title: item.title }, item.title), bar(item, tints), unseen(now)),
    ),
  );
}

function afterRow(item, orders, { k, tints, reranked }) {
  const place = orders.place.get(item);
  const summary = element(
    "summary.line-up",
    {},
    element("span.place", {}, place),
    element("span.body", {}, element("span.title", {}, item.title), reasonLine(item)),
    reranked ? movement(item.retrieval_rank, place, k) : bar(item, tints),
  );
  const why = element("details", {}, summary, details(item, tints));
  return element("li.row", { data: { item: item.item_id } }, why);
}

function reasonLine(item) {
  const titles = (item.because ?? []).map((reason) => reason.title ?? String(reason));
  if (!titles.length) return null;
  return element("span.because", {}, unseen("because of "), titles.join(" · "));
}

function movement(was, is, k) {
  if (was === is) return element("span.move.same", {}, "–", unseen("unmoved"));
  const kind = was > k ? "enters" : is < was ? "up" : "down";
  const steps = Math.abs(was - is);
  const said = `${is < was ? "up" : "down"} ${steps}, from place ${was}`;
  return element(`span.move.${kind}`, { title: said }, element("span", { ariaHidden: "true" }, `${is < was ? "▲" : "▼"} ${steps}`), unseen(said));
}

/** The shares of the sources side by side, strongest source of the answer first. */
function bar(item, tints) {
  const shares = sharesOf(item);
  const parts = [...tints.keys()].filter((name) => (shares[name] ?? 0) > 0.005);
  if (!parts.length) return null;
  const said = parts.map((name) => `${name} ${share(shares[name])}`).join(", ");
  const node = element("span.bar", { role: "img", ariaLabel: `sources: ${said}`, title: said });
  for (const name of parts) {
    const part = element(`span.tint-${tints.get(name)}`);
    part.style.flexGrow = shares[name];
    node.append(part);
  }
  return node;
}

function details(item, tints) {
  const shares = sharesOf(item);
  const named = [...tints.keys()].filter((name) => name in shares);
  const sources = named.map((name) => {
    const fill = element(`span.tint-${tints.get(name)}`);
    fill.style.width = `${Math.max(0, Math.min(1, shares[name])) * 100}%`;
    return [element("dt", {}, name), element("dd", {}, element("span.track", { ariaHidden: "true" }, fill), element("span.share", {}, share(shares[name])))];
  });
  const because = (item.because ?? []).map((reason) => element("li", {}, reason.title ?? String(reason)));
  return element(
    "div.why",
    {},
    because.length ? element("div", {}, element("h4", {}, "Pulled by"), element("ul", {}, ...because)) : null,
    named.length ? element("div.shares", {}, element("h4", {}, "Share of each source"), element("dl", {}, ...sources.flat())) : null,
    element("div", {}, element("h4", {}, "Places and scores"), element("dl.plain", {}, ...placesAndScores(item))),
  );
}

function placesAndScores(item) {
  const score = (value) => (value === null || value === undefined ? "" : ` (${signed(value, 2)})`);
  const read = item.rerank_rank === null || item.rerank_rank === undefined;
  const pairs = [
    ["retrieval", `${item.retrieval_rank}${score(item.retrieval_score)}`],
    ["reranker alone", read ? "not read" : `${item.rerank_rank}${score(item.rerank_score)}`],
    ["score", signed(item.score, 2)],
    ["item id", item.item_id],
  ];
  return pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
}

function swatch(tint, words) {
  return element("li", {}, element(`span.swatch.tint-${tint}`), words);
}

/** The legend of the bars: a swatch a source, one for all weaker ones. */
function legend(tints) {
  if (!tints.size) return null;
  const named = [...tints].filter(([, tint]) => tint < TINTS || tints.size === TINTS);
  const others = tints.size - named.length;
  const keys = named.map(([name, tint]) => swatch(tint, name));
  if (others) keys.push(swatch(TINTS, `${others} others`));
  return element("div.legend", {}, element("p", {}, "Share of each source in retrieval's score"), element("ul", {}, ...keys));
}

/** Source → its tint, the source with the largest share over all items first. */
function tintsOf(items) {
  const sums = new Map();
  for (const item of items) {
    for (const [name, value] of Object.entries(sharesOf(item))) sums.set(name, (sums.get(name) ?? 0) + Math.max(0, value));
  }
  const named = [...sums].filter(([, sum]) => sum > 0).sort((one, other) => other[1] - one[1]);
  return new Map(named.map(([name], at) => [name, Math.min(at + 1, TINTS)]));
}

function sharesOf(item) {
  return item.sources ?? {};
}

function rowOf(column, item) {
  return [...column.querySelectorAll("[data-item]")].find((row) => row.dataset.item === String(item.item_id));
}

/** An item under the pointer or the focus stands out on both sides, its line with it. */
function light(node) {
  const on = (event) => {
    const id = event.target.closest("[data-item]")?.dataset.item;
    node.classList.toggle("lit", id !== undefined);
    for (const part of node.querySelectorAll("[data-item]")) part.classList.toggle("on", part.dataset.item === id);
  };
  const off = () => {
    node.classList.remove("lit");
    for (const part of node.querySelectorAll(".on")) part.classList.remove("on");
  };
  node.addEventListener("pointerover", on);
  node.addEventListener("focusin", on);
  node.addEventListener("pointerleave", off);
  node.addEventListener("focusout", off);
}
