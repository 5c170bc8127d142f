// The tables of the report, with small bars and intervals drawn beside the figures.

import { element, svg } from "./element.js";
import { figure, intervalWords, MAIN_METRIC, metricWords, number, settingWords, signed, sliceWords, SMALL_SLICE, symbol, whole } from "./words.js";

const COLUMNS = ["recall@10", "mrr@10", "recall@100", "coverage@10", "novelty@10"];

/** Systems by the main metric, best first, each with its interval on a common scale. */
export function systems(report) {
  const found = report.systems.map((system) => ({
    ...system,
    value: system.metrics[MAIN_METRIC],
    interval: system.intervals?.[MAIN_METRIC] ?? [system.metrics[MAIN_METRIC], system.metrics[MAIN_METRIC]],
  }));
  const most = Math.max(...found.map((system) => system.interval[1]), 1e-9);
  const rows = found.map((system) =>
    row(
      heading(system.name, system.note),
      [
        cell(figure(system.value), `${figure(system.interval[0])} – ${figure(system.interval[1])}`),
        element("td.wide-cell", {}, whisker(system, most)),
        ...COLUMNS.map((name) => cell(metricText(name, system.metrics[name]))),
      ],
      system.role,
    ),
  );
  return table(["System", metricWords(MAIN_METRIC), "", ...COLUMNS.map(metricWords)], rows);
}

export function contributions(found) {
  const rows = found.map(({ source, alone, test }) =>
    row(heading(source), [
      cell(figure(alone)),
      cell(figure(test.theirs)),
      cell(signed(test.difference), intervalWords(test)),
      element("td", {}, tag(test.verdict)),
    ]),
  );
  return table(["Source", "Alone", "Without it", "It adds", "Verdict"], rows);
}

/** Recall of so many candidates, which no reranker of them can exceed. */
export function ceiling(found) {
  const rows = Object.entries(found).map(([name, value]) => {
    const fill = element("span.tint-2");
    fill.style.width = `${100 * value}%`;
    return row(heading(name.replace("recall@", "")), [element("td.wide-cell", {}, element("span.track.long", {}, fill)), cell(figure(value))]);
  });
  return table(["Candidates", "", "Recall"], rows);
}

/** The systems that the comparisons are about, in every part of the holdout; null where there are no parts. */
export function slices(report) {
  const names = [...new Set(report.comparisons.flatMap((one) => [one.ours, one.theirs]))];
  const asked = report.systems.filter((system) => names.includes(system.name));
  const focus = asked.length ? asked.sort((a, b) => names.indexOf(a.name) - names.indexOf(b.name)) : report.systems.slice(0, 1);
  const parts = Object.entries(focus[0]?.slices ?? {}).filter(([, figures]) => MAIN_METRIC in figures);
  if (!parts.length) return null;
  const rows = parts.map(([name, figures]) => {
    const values = focus.map((system) => system.slices[name]?.[MAIN_METRIC]);
    const best = Math.max(...values.filter((value) => value !== undefined));
    const cells = values.map((value) => element(value === best && focus.length > 1 ? "td.best" : "td", {}, figure(value)));
    return row(heading(sliceWords(name)), [cell(whole(figures.users)), ...cells], figures.users < SMALL_SLICE ? "few" : "");
  });
  return table(["Part", "Users", ...focus.map((system) => system.name)], rows);
}

/** Every setting of the frontier, cheapest first; a name is a button that tries it. */
export function frontier(found, tried) {
  const points = [...found.points].sort((one, other) => one.mean_ms - other.mean_ms);
  const rows = points.map((point) =>
    row(
      element("th", { scope: "row" }, element("button.link", { type: "button", onclick: () => tried(point.setting) }, settingWords(point.setting))),
      [
        cell(figure(point.ndcg10)),
        cell(signed(point.test.difference)),
        element("td", {}, tag(point.test.verdict)),
        cell(whole(point.tokens)),
        cell(point.mean_ms.toFixed(1)),
        cell(`${point.p50_ms.toFixed(1)} / ${point.p95_ms.toFixed(1)}`),
        cell(whole(point.memory_mb)),
        cell(number(point.cost_of_1000)),
        cell(agreementWords(point.agreement)),
      ],
      point.on_front ? "ours" : "",
    ),
  );
  return table(["Setting", "NDCG@10", "Gain", "Verdict", "Tokens a user", "ms, mean", "p50 / p95, reranked", "MB", "Cost of 1,000", "τ / largest difference, to float32"], rows);
}

/** Kendall's τ with the scores in float32, and the largest difference; reports of earlier versions have neither. */
function agreementWords(found) {
  return found ? `${found.kendall_tau.toFixed(3)} / ${Number(found.largest_difference.toPrecision(2))}` : "–";
}

export function tag(verdict) {
  return element(`span.tag.${verdict.replace(" ", "-")}`, {}, `${symbol(verdict)} ${verdict}`);
}

function table(names, rows) {
  const head = element("tr", {}, ...names.map((name) => (name ? element("th", { scope: "col" }, name) : element("td", {}))));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div.wide", { tabIndex: 0, role: "region", ariaLabel: `${names[0]}, table` }, made);
}

function row(first, cells, kind = "") {
  return element(kind ? `tr.${kind}` : "tr", {}, first, ...cells);
}

function heading(text, note = "") {
  return element("th", { scope: "row" }, text, note ? element("small", {}, note) : null);
}

function cell(text, range = "") {
  return element("td", {}, text, range ? element("small", {}, range) : null);
}

function metricText(name, value) {
  if (value === undefined) return "–";
  if (name.startsWith("coverage")) return `${(value * 100).toFixed(1)} %`;
  return name.startsWith("novelty") ? value.toFixed(2) : figure(value);
}

/** A dot with its interval, from 0 to `most`. */
function whisker({ value, interval, role }, most) {
  const x = (at) => 4 + (152 * at) / most;
  return svg(
    "svg",
    { class: `whisker ${role}`, viewBox: "0 0 160 16", "aria-hidden": "true" },
    svg("line", { class: "base", x1: 4, x2: 156, y1: 8, y2: 8 }),
    svg("line", { x1: x(interval[0]), x2: x(interval[1]), y1: 8, y2: 8 }),
    svg("circle", { cx: x(value), cy: 8, r: 4 }),
  );
}
