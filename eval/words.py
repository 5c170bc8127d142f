"""How figures are said to people: names of metrics and slices, and a paired test as a sentence."""

from eval.significance import PairedTest, Verdict

SMALL_SLICE = 100
"""Users below which a slice is printed grey: its figures move a lot by chance."""

_METRICS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "map": "MAP",
    "hit_rate": "HitRate",
    "coverage": "Coverage",
    "novelty": "Novelty",
    "repeat": "Repeats",
}
_SLICES = {
    "target_item/warm": "target seen in training",
    "target_item/cold": "target never seen in training",
    "target_popularity/popular": "target among the most popular",
    "target_popularity/middle": "target of middling popularity",
    "target_popularity/rare": "target among the rare",
    "history_length/0": "no history",
    "day/same": "same day as the last item",
    "day/later": "another day",
}
_SYMBOLS = {Verdict.HELPS: "▲", Verdict.NO_EVIDENCE: "●", Verdict.HARMS: "▼"}


def metric_words(name: str) -> str:
    """`ndcg@10` → `NDCG@10`."""
    kind, at, k = name.partition("@")
    return _METRICS.get(kind, kind) + at + k


def slice_words(name: str) -> str:
    """`history_length/5-9` → `history of 5–9 items`."""
    kind, _, value = name.partition("/")
    if kind == "history_length" and value != "0":
        return f"history of {value.replace('-', '–')} items"
    return _SLICES.get(name, name)


def symbol(verdict: Verdict) -> str:
    """A sign beside the colour, for those who see no colour."""
    return _SYMBOLS[verdict]


def conclusion(ours: str, theirs: str, verdict: Verdict) -> str:
    """What the test lets one say, and no more."""
    if verdict is Verdict.HELPS:
        return _sentence(f"{ours} is better than {theirs}.")
    if verdict is Verdict.HARMS:
        return _sentence(f"{ours} is worse than {theirs}.")
    return f"There is no evidence that {ours} is better or worse than {theirs}."


def _sentence(text: str) -> str:
    # `two-stage` begins with a capital; `iALS` and `item-kNN` are spelt as they are.
    return text[0].upper() + text[1:] if text.split()[0].islower() else text


def evidence(metric: str, test: PairedTest) -> str:
    """The figures behind a conclusion; neither interval nor p where too few users differ for either."""
    level = f"{test.level * 100:g} % interval"
    means = f"{metric_words(metric)} {test.ours:.4f} against {test.theirs:.4f}"
    if test.differing < test.needed:
        size = f"{test.difference:+.4f}" if test.relative is None else percent(test.relative)
        change = f"{size} by {too_few(test)} for an interval and p, which need {test.needed}"
    elif test.relative is None or test.relative_low is None or test.relative_high is None:
        change = f"{test.difference:+.4f} ({level} {test.low:+.4f} to {test.high:+.4f}), {p_words(test.p_value)}"
    else:
        around = f"{level} {percent(test.relative_low)} to {percent(test.relative_high)}"
        change = f"{percent(test.relative)} ({around}), {p_words(test.p_value)}"
    equal = test.users - test.better - test.worse
    return (
        f"{means}: {change}. "
        f"Of {test.users:,} users {test.better:,} are better off, {test.worse:,} worse off, "
        f"{equal:,} see no difference."
    ).replace("-", "−")


def interval_words(test: PairedTest) -> str:
    """`-0.0012 to +0.0034`, or that too few users differ for an interval."""
    if test.differing < test.needed:
        return too_few(test)
    return f"{test.low:+.4f} to {test.high:+.4f}"


def too_few(test: PairedTest) -> str:
    """`5 users who differ, too few`."""
    return f"{test.differing} {'user who differs' if test.differing == 1 else 'users who differ'}, too few"


def percent(share: float) -> str:
    """`+4.6 %`, with a true minus sign."""
    return f"{share * 100:+.1f} %".replace("-", "−")


def p_words(p_value: float) -> str:
    """`p = .012`, and never more precisely than ten thousand resamples allow."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def number(value: float | int | str) -> str:
    """A figure for a table: thousands apart, as many decimals as say something; words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:,.1f}" if size >= 10 else f"{value:.3g}"
