// The lines between two columns: one for each item, from its place after retrieval to its place after reranking.

import { svg } from "./element.js";

export class Lines {
  constructor() {
    this.node = svg("svg", { class: "lines", "aria-hidden": "true" });
    this.pairs = [];
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.node);
  }

  /**
   * @param {Array<{id: string, from: Element, to: Element, kind: string}>} pairs rows that stand for one item;
   *   kind is up, down, same, enters or leaves.
   */
  join(pairs) {
    this.pairs = pairs;
    this.draw();
  }

  draw() {
    // One unit is one pixel: a viewBox would give the picture a shape of its own, and with it the rows.
    const box = this.node.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const flat = this.pairs.map((pair) => this.#line(pair, box));
    this.node.replaceChildren(...flat);
  }

  #line({ id, from, to, kind }, box) {
    const [start, end] = [middle(from) - box.top, middle(to) - box.top];
    const bend = box.width * 0.45;
    const path = `M3 ${start}C${bend} ${start} ${box.width - bend} ${end} ${box.width - 3} ${end}`;
    return svg(
      "g",
      { class: `line ${kind}`, "data-item": id },
      svg("path", { d: path, pathLength: 1 }),
      svg("circle", { cx: 3, cy: start, r: 2.5 }),
      svg("circle", { cx: box.width - 3, cy: end, r: 2.5 }),
    );
  }
}

/** The height at which a row's place number stands. */
function middle(row) {
  const box = row.querySelector(".place").getBoundingClientRect();
  return box.top + box.height / 2;
}
