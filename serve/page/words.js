// How figures are said to people. The report's words are those of eval/words.py, and a test compares the two.

/** Users below which a slice is printed grey: its figures move a lot by chance. */
export const SMALL_SLICE = 100;
export const MAIN_METRIC = "ndcg@10";

const METRICS = {
  recall: "Recall", ndcg: "NDCG", mrr: "MRR", map: "MAP", hit_rate: "HitRate",
  coverage: "Coverage", novelty: "Novelty", repeat: "Repeats",
};
const SLICES = {
  "target_item/warm": "target seen in training",
  "target_item/cold": "target never seen in training",
  "target_popularity/popular": "target among the most popular",
  "target_popularity/middle": "target of middling popularity",
  "target_popularity/rare": "target among the rare",
  "history_length/0": "no history",
  "day/same": "same day as the last item",
  "day/later": "another day",
};
const SYMBOLS = { helps: "▲", "no evidence": "●", harms: "▼" };

/** `1,234`. */
export function whole(value) {
  return Math.round(value).toLocaleString("en");
}

/** A figure with as many decimals as say something. */
export function number(value) {
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return whole(value);
  if (size >= 10) return value.toFixed(1);
  return String(Number(value.toPrecision(3)));
}

/** Millions and thousands in short: `4.2 M`. */
export function large(value) {
  for (const [size, sign] of [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e4, " k"]]) {
    if (value >= size) return number(value / (size === 1e4 ? 1e3 : size)) + sign;
  }
  return number(value);
}

/** An amount of money in whatever currency the prices are. */
export function money(value) {
  if (value === 0) return "0";
  return value >= 1000 ? whole(value) : value >= 0.01 ? value.toFixed(2) : fixed(value, 2);
}

/** `12.3 ms`, `1.2 s`. */
export function duration(ms) {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export function share(value) {
  return `${Math.round(value * 100)} %`;
}

export function figure(value) {
  return value === null || value === undefined ? "–" : value.toFixed(4);
}

/** With its sign, a true minus: `+0.0045`. */
export function signed(value, digits = 4) {
  return minus((value < 0 || Object.is(value, -0) ? "" : "+") + value.toFixed(digits));
}

export function percent(value) {
  return `${signed(value * 100, 1)} %`;
}

/** `ndcg@10` → `NDCG@10`. */
export function metricWords(name) {
  const [kind, k] = name.split("@");
  return (METRICS[kind] ?? kind) + (k === undefined ? "" : `@${k}`);
}

export function sliceWords(name) {
  const [kind, value] = name.split("/");
  if (kind === "history_length" && value !== "0") return `history of ${value.replace("-", "–")} items`;
  return SLICES[name] ?? name;
}

/** A sign beside the colour, for those who see no colour. */
export function symbol(verdict) {
  return SYMBOLS[verdict] ?? "";
}

/** What a paired test lets one say, and no more. */
export function conclusion({ ours, theirs, test }) {
  if (test.verdict === "helps") return capital(`${ours} is better than ${theirs}.`);
  if (test.verdict === "harms") return capital(`${ours} is worse than ${theirs}.`);
  return `There is no evidence that ${ours} is better or worse than ${theirs}.`;
}

/** The figures behind a conclusion in one sentence. */
export function evidence({ metric, test }) {
  const level = `${Number((test.level * 100).toPrecision(6))} % interval`;
  const means = `${metricWords(metric)} ${figure(test.ours)} against ${figure(test.theirs)}`;
  const few = tooFew(test);
  const size = test.relative === null ? signed(test.difference) : percent(test.relative);
  const change = few
    ? `${size} by ${few} for an interval and p, which need ${needed(test)}`
    : [test.relative, test.relative_low, test.relative_high].includes(null)
      ? `${signed(test.difference)} (${level} ${signed(test.low)} to ${signed(test.high)}), ${pWords(test.p_value)}`
      : `${percent(test.relative)} (${level} ${percent(test.relative_low)} to ${percent(test.relative_high)}), ${pWords(test.p_value)}`;
  const equal = test.users - test.better - test.worse;
  return (
    `${means}: ${change}. Of ${whole(test.users)} users ${whole(test.better)} are better off, ` +
    `${whole(test.worse)} worse off, ${whole(equal)} see no difference.`
  );
}

/** `−0.0012 to +0.0034`, or that too few users differ for an interval. */
export function intervalWords(test) {
  return tooFew(test) || `${signed(test.low)} to ${signed(test.high)}`;
}

/** `5 users who differ, too few`; nothing where they are enough. */
function tooFew(test) {
  const differing = test.better + test.worse;
  if (differing >= needed(test)) return "";
  return `${differing} ${differing === 1 ? "user who differs" : "users who differ"}, too few`;
}

/** Users that must differ for the sign test to reach the level at all. */
function needed({ level }) {
  return Math.ceil(1 - Math.log2(1 - level));
}

function pWords(p) {
  return p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`;
}

/** A frontier's setting: `minilm-l6, float32, 20 deep, 50% of users`. */
export function settingWords({ model, precision, depth, share: part }) {
  return `${model}, ${precision}, ${depth} deep${part >= 1 ? "" : `, ${Math.round(part * 100)}% of users`}`;
}

/** A reason of the service as a sentence; one of several lines points at a place, and is left as it is. */
export function sentence(text) {
  if (!text) return "";
  const said = text[0].toUpperCase() + text.slice(1);
  return text.includes("\n") || /[.!?)]$/.test(said) ? said : `${said}.`;
}

/** `1 item`, `2 items`. */
export function count(n, noun) {
  return `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
}

function fixed(value, digits) {
  // As many decimals as show two figures: 0.0000080, not 8.0e-6.
  return value.toFixed(Math.min(12, digits - 1 - Math.floor(Math.log10(value))));
}

function minus(text) {
  return text.replace("-", "−");
}

function capital(text) {
  const first = text.split(" ")[0];
  return first === first.toLowerCase() ? text[0].toUpperCase() + text.slice(1) : text;
}
