// What a request took, and what a million such would cost at prices that the reader may change.

import * as api from "./api.js";
import { element } from "./element.js";
import { count, duration, large, money, whole } from "./words.js";

const MILLION = 1e6;
const HOUR_MS = 3_600_000;
const LEAST_MS = 0.05; // what takes less is not worth a word
/** The looking up of a history is not priced, as in the service's ledger. */
const STAGES = [
  ["lookup_ms", "looking up", 5],
  ["retrieval_ms", "retrieval", 1],
  ["rerank_ms", "reranking", 2],
  ["explain_ms", "reasons", 4],
];

/** Prices begin as the service's own; what the reader types holds until the page is left. */
export class Cost {
  constructor(prices) {
    this.prices = { per_machine_hour: prices?.per_machine_hour ?? 0, per_million_tokens: prices?.per_million_tokens ?? 0 };
    this.node = element("div.cost");
  }

  /** @param {Object} answer of the service. @param {Object} body the request. */
  show(answer, body) {
    this.answer = answer;
    this.amounts = element("div.figures");
    this.node.replaceChildren(
      element("h3", {}, "What this took"),
      this.amounts,
      this.#priceLine(),
      theRequest(body, answer),
    );
    this.#draw();
  }

  #draw() {
    const { stages, usage } = this.answer;
    const ms = STAGES.reduce((sum, [name]) => sum + (stages[name] ?? 0), 0);
    const machineMs = ms - (stages.lookup_ms ?? 0);
    const fed = usage.prompt_tokens - usage.cached_tokens;
    const one = (fed / MILLION) * this.prices.per_million_tokens + (machineMs / HOUR_MS) * this.prices.per_machine_hour;
    const priced = this.prices.per_machine_hour > 0 || this.prices.per_million_tokens > 0;
    const remembered = usage.cached_tokens ? `, ${whole(usage.cached_tokens)} remembered` : "";
    this.amounts.replaceChildren(
      amount("Time", duration(ms), stageWords(stages), stageBar(stages, ms)),
      amount("Tokens", whole(usage.prompt_tokens), `${count(usage.reranked, "candidate")} read of ${whole(usage.candidates)}${remembered}`),
      amount("This request", priced ? money(one) : "–", priced ? "at these prices" : "no price is set"),
      amount("A million such", priced ? money(one * MILLION) : "–", `${large((machineMs / HOUR_MS) * MILLION)} machine hours, ${large(fed * MILLION)} tokens`),
    );
  }

  #priceLine() {
    const price = (name, label) =>
      element("label", {}, element("input", {
        type: "number",
        min: 0,
        step: "any",
        inputMode: "decimal",
        value: this.prices[name],
        oninput: (event) => {
          this.prices[name] = Math.max(0, Number(event.target.value) || 0);
          this.#draw();
        },
      }), ` ${label}`);
    return element(
      "p.prices",
      {},
      element("span", {}, "Prices: "),
      price("per_machine_hour", "an hour of the machine"),
      price("per_million_tokens", "a million tokens"),
    );
  }
}

function amount(label, value, note, more = null) {
  return element("div.amount", {}, element("p.label", {}, label), element("p.value", {}, value), more, element("p.note", {}, note));
}

function stageWords(stages) {
  return STAGES.filter(([name]) => stages[name] >= LEAST_MS)
    .map(([name, words]) => `${words} ${duration(stages[name])}`)
    .join(", ");
}

function stageBar(stages, ms) {
  const node = element("span.bar", { ariaHidden: "true" });
  for (const [name, , tint] of STAGES) {
    if (!(stages[name] >= LEAST_MS)) continue;
    const part = element(`span.tint-${tint}`);
    part.style.flexGrow = stages[name] / ms;
    node.append(part);
  }
  return node;
}

function theRequest(body, answer) {
  const curl = api.asCurl(body);
  const copy = element("button.small", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(curl);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const known = [["request", answer.request_id], ["release", answer.release]].filter(([, value]) => value);
  const ids = known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  return element(
    "details.request",
    {},
    element("summary", {}, "The same from a terminal"),
    element("pre", { tabIndex: 0 }, element("code", {}, curl)),
    navigator.clipboard ? copy : null,
    ids.length ? element("dl.plain", {}, ...ids) : null,
  );
}
