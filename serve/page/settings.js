// How much the model reads, how many are shown, what it may cost, and which items may appear.

import { byId, element } from "./element.js";
import { count, whole } from "./words.js";

const NO_CAP = null;
const MOST_SHOWN = 50;
const TOKENS = [50, 100, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, NO_CAP];
const MS = [5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 500, 1000, NO_CAP];

export class Settings {
  /** `changed()` is called when the reader has set something. */
  constructor({ about, changed }) {
    const { depth, limit } = about.limits;
    this.about = about;
    this.changed = changed;
    this.depth = new Slider("depth", "Depth", upTo(0, Math.max(1, depth)), (n) => `${count(n, "candidate")} read`);
    this.k = new Slider("k", "Shown", upTo(1, Math.max(1, Math.min(MOST_SHOWN, limit))), (n) => count(n, "item"));
    this.tokens = new Slider("tokens", "Tokens, at most", TOKENS, (n) => (n === NO_CAP ? "no cap" : whole(n)));
    this.ms = new Slider("ms", "Time, at most", MS, (n) => (n === NO_CAP ? "no cap" : `${whole(n)} ms`));
    this.sliders = [this.depth, this.k, this.tokens, this.ms];
    this.where = byId("where");
    this.known = byId("exclude-known");
    this.radios = [...document.querySelectorAll("[name=rerank]")];
    byId("sliders").replaceChildren(...this.sliders.map((slider) => slider.node));
    if (about.columns?.length) byId("columns").textContent = `Columns: ${about.columns.join(", ")}.`;
    this.reset();
    for (const input of [...this.radios, this.known, this.where, ...this.sliders.map((slider) => slider.input)]) {
      input.addEventListener("change", () => this.#changed());
    }
    for (const slider of this.sliders) slider.input.addEventListener("input", () => this.#brief());
  }

  reset() {
    this.depth.value = this.about.defaults.depth;
    this.k.value = this.about.defaults.k;
    this.known.checked = this.about.defaults.exclude_known;
    this.tokens.value = NO_CAP;
    this.ms.value = NO_CAP;
    this.#brief();
  }

  get rerank() {
    return this.radios.find((radio) => radio.checked).value;
  }

  set rerank(choice) {
    for (const radio of this.radios) radio.checked = radio.value === choice;
    this.#brief();
  }

  /** A frontier's setting, of which a request chooses the depth; the whole of the sweep's users was reranked. */
  take({ depth }) {
    this.depth.value = depth;
    this.tokens.value = NO_CAP;
    this.ms.value = NO_CAP;
    this.rerank = "always";
  }

  /** Part of a request. As many items as are read are asked for: those that the model moved out of sight, too. */
  get body() {
    const reads = this.rerank === "never" ? 0 : this.depth.value;
    const budget = { depth: this.depth.value };
    if (this.tokens.value !== NO_CAP) budget.max_tokens = this.tokens.value;
    if (this.ms.value !== NO_CAP) budget.max_ms = this.ms.value;
    const limit = Math.min(Math.max(this.k.value, reads), this.about.limits.limit);
    const body = { limit, rerank: this.rerank, budget, explain: true };
    if (this.where.value.trim()) body.where = this.where.value.trim();
    if (this.known.checked !== this.about.defaults.exclude_known) body.exclude_known = this.known.checked;
    return body;
  }

  /** Into the address of the page. */
  write(address) {
    address.set("depth", this.depth.value);
    address.set("k", this.k.value);
    if (this.rerank !== "auto") address.set("rerank", this.rerank);
    if (this.tokens.value !== NO_CAP) address.set("tokens", this.tokens.value);
    if (this.ms.value !== NO_CAP) address.set("ms", this.ms.value);
    if (this.where.value.trim()) address.set("where", this.where.value.trim());
    if (this.known.checked !== this.about.defaults.exclude_known) address.set("known", this.known.checked ? "out" : "in");
  }

  /** Out of the address of the page. */
  read(address) {
    for (const slider of this.sliders) if (address.has(slider.name)) slider.value = Number(address.get(slider.name));
    if (["always", "never"].includes(address.get("rerank"))) this.rerank = address.get("rerank");
    this.where.value = address.get("where") ?? "";
    if (address.has("known")) this.known.checked = address.get("known") === "out";
    this.#brief();
  }

  #changed() {
    this.#brief();
    this.changed();
  }

  #brief() {
    const reads = this.rerank === "never" ? "not reranked" : `${this.depth.value} deep`;
    byId("settings-in-short").textContent = `${reads}, ${this.k.value} shown`;
  }
}

/** A range input over a list of values, its value in words beside it. */
class Slider {
  constructor(name, label, values, words) {
    Object.assign(this, { name, values, words });
    this.output = element("output", { htmlFor: name });
    this.input = element("input", {
      id: name,
      type: "range",
      min: 0,
      max: values.length - 1,
      step: 1,
      oninput: () => this.#say(),
    });
    const caption = element("label", { htmlFor: name }, label);
    this.node = element("div.slider", {}, element("div.line", {}, caption, this.output), this.input);
  }

  get value() {
    return this.values[Number(this.input.value)];
  }

  /** The nearest value that the slider has; null is its own. */
  set value(wanted) {
    const distance = (value) => (value === null || wanted === null ? (value === wanted ? 0 : Infinity) : Math.abs(value - wanted));
    const nearest = this.values.reduce((best, value, at) => (distance(value) < distance(this.values[best]) ? at : best), 0);
    this.input.value = nearest;
    this.#say();
  }

  #say() {
    const said = this.words(this.value);
    this.output.textContent = said;
    this.input.setAttribute("aria-valuetext", said);
    this.input.style.setProperty("--done", `${(100 * Number(this.input.value)) / Math.max(1, this.values.length - 1)}%`);
  }
}

function upTo(first, last) {
  return Array.from({ length: last - first + 1 }, (_, step) => first + step);
}
