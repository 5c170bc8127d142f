// The evaluation report: verdicts, the frontier, systems with their intervals, sources, slices, and how it was measured.

import * as api from "./api.js";
import { element } from "./element.js";
import { FrontierPlot } from "./frontier.js";
import { gatePicture } from "./gate.js";
import { notice } from "./notice.js";
import * as tables from "./tables.js";
import { conclusion, evidence, number, sentence, symbol, whole } from "./words.js";

export class Report {
  /** `tried(setting)` is called with a point of the frontier that the reader has chosen. */
  constructor(node, tried) {
    this.node = node;
    this.tried = tried;
  }

  async load() {
    this.node.setAttribute("aria-busy", "true");
    try {
      this.#show(await api.report());
    } catch (error) {
      const again = { label: "Try again", act: () => this.load() };
      const missing = error.status === 404;
      const title = missing ? "There is no report yet." : "The report cannot be shown.";
      this.node.replaceChildren(notice(missing ? "info" : "error", title, sentence(error.message), again));
    } finally {
      this.node.removeAttribute("aria-busy");
    }
  }

  #show(report) {
    const { frontier } = report;
    const parts = [
      head(report),
      ...warnings(report),
      element("div.verdicts", {}, ...report.comparisons.map(verdict)),
      frontier ? this.#frontier(frontier) : noFrontier(),
      section("Systems", `Judged on the same ${whole(report.users)} users, with 95 % intervals over users.`, tables.systems(report)),
      report.contributions.length ? section("What each source adds", SOURCES, tables.contributions(report.contributions)) : null,
      element(
        "div.pair",
        {},
        Object.keys(report.ceiling).length ? section("What a reranker could reach", CEILING, tables.ceiling(report.ceiling)) : null,
        report.gate.length ? section("Whom to rerank", GATE, gatePicture(report.gate)) : null,
      ),
      slices(report),
      section("How it was measured", "", measured(report)),
    ];
    this.node.replaceChildren(...parts.filter(Boolean));
  }

  #frontier(frontier) {
    const plot = new FrontierPlot(frontier, this.tried);
    const table = element("details", {}, element("summary", {}, "Every setting as a table"), tables.frontier(frontier, this.tried));
    const text =
      `${whole(frontier.users)} users. Each point is a way to rerank; the line joins those that no other beats, ` +
      "and begins at retrieval alone. Choose a point to try it.";
    return section("Quality against cost", text, plot.node, ...wholeCatalog(frontier), table);
  }
}

const SOURCES =
  "NDCG@10 of the first stage's weighted sum, without a network over it. Alone: the same candidates in the order of one source. " +
  "Without it: in the order of all others. Weights are fitted anew both with and without it, so that a source without " +
  "weight adds nothing. A network over all sources is set against the weighted sum.";
const CEILING =
  "A reranker only reorders what retrieval has found: whoever reranks so many candidates " +
  "cannot have a higher Recall@10 than their recall.";
const GATE =
  "Gain in NDCG@10 on validation, mean over all users, where a share of them is reranked: " +
  "those whom the gate expects to gain most, and where chance chooses.";

function head(report) {
  const badges = [`${report.part} part`, report.fit, `${whole(report.users)} users judged`];
  return element(
    "header",
    {},
    element("h2", {}, report.title),
    element("ul.badges", {}, ...badges.map((badge) => element("li", {}, badge))),
    element("p.muted", {}, report.split),
  );
}

function warnings(report) {
  if (report.fit === "final fit") {
    return [notice("warn", "These models were fitted on every interaction, the held-out ones among them.",
      "The figures show what they remember, not what they predict; do not quote them.")];
  }
  if (report.part === "validation") {
    return [notice("warn", "Validation figures.",
      "Models, weights and stopping times are chosen on validation interactions, so these figures flatter; the test part decides.")];
  }
  return [];
}

function verdict(found) {
  const kind = found.test.verdict.replace(" ", "-");
  return element(
    `article.verdict.${kind}`,
    {},
    element("p.question", {}, element("span.tag", {}, `${symbol(found.test.verdict)} ${found.test.verdict}`), found.question),
    element("h3", {}, conclusion(found)),
    element("p.muted", {}, evidence(found)),
  );
}

function section(title, text, ...parts) {
  return element("section", {}, element("h3", {}, title), text ? element("p.muted", {}, text) : null, ...parts);
}

function noFrontier() {
  return section("Quality against cost", "", element("p.muted", {},
    "No settings were tried: python cli.py evaluate --frontier sweeps depth, share of users and precision."));
}

function wholeCatalog(frontier) {
  return frontier.whole_catalog.map((one) => {
    const read = one.users
      ? `; read for ${one.users} users it took ${(one.ms / 1000).toFixed(1)} s each and gave NDCG@10 ${one.ndcg10.toFixed(4)}, ` +
        `where two stages gave the same users ${one.two_stage_ndcg10.toFixed(4)}`
      : "";
    return element("p.muted", {}, `The whole catalog through ${one.model} would be ${whole(one.tokens)} tokens a user${read}.`);
  });
}

function slices(report) {
  const table = tables.slices(report);
  if (!table) return null;
  const text = "NDCG@10 in parts of the same holdout. Parts of fewer than 100 users are grey: chance moves them a lot.";
  return section("For whom it works", text, table);
}

function measured(report) {
  const list = (pairs) => element("dl.facts", {}, ...Object.entries(pairs).flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, number(value))]));
  const notes = [
    ...report.notes,
    ...Object.entries(report.left_out).map(([name, reason]) => `Not run: ${name}: ${reason}`),
    "The whole catalog is ranked, no negatives are sampled; one for whom nothing was found scores 0.",
    "Intervals come from resampling the users. A verdict is “helps” or “harms” where the interval leaves out zero and enough users see a difference at all.",
  ];
  return element(
    "div",
    {},
    element("div.fact-columns", {}, list(report.counts), list(report.cost)),
    element("ul.notes", {}, ...notes.map((note) => element("li", {}, note))),
    element("details", {}, element("summary", {}, "Where the figures come from"), list(report.provenance)),
  );
}
