"""What each source of the first stage finds by itself, and what it adds to the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.schema import Candidates, Holdout, Mask, Scores
from eval.metrics import PerUser, metrics_of, relevance_of
from eval.results import MAIN_METRIC, Contribution, SliceContribution
from eval.significance import paired_bootstrap
from eval.slices import ndcg10_by_slice
from fusion.linear import LinearFusion
from fusion.network import NETWORK
from retrieval.fit import drawn
from retrieval.own_weights import source_of
from retrieval.retriever import LAST_TEXT, POPULARITY, TEXT, Retriever, concatenated
from retrieval.weighing import fitted_fusion

TOWERS, TREND = "towers", "trend"
USERS_AT_ONCE = 2048
"""Whole unions are some four times as long as the lists that are kept of them."""
PLACES = 10
"""Of a list, as the main metric looks at them."""

Order = Callable[[Candidates], Scores]


@dataclass(frozen=True)
class JudgedSources:
    """The sources of one retriever on one holdout.

    Attributes:
        alone: source, or group of sources → the candidates in its order, without its scores.
        contributions: empty where validation has nobody to fit weights on.
    """

    alone: Mapping[str, Candidates]
    contributions: list[Contribution]


def judge_sources(
    retriever: Retriever,
    asked: Holdout,
    *,
    validation: Holdout,
    served: int,
    depth: int,
    exclude_known: bool,
    as_fitted: Retriever | None = None,
) -> JudgedSources:
    """Orders the candidates of every user by each source alone, and by all but that source.

    The candidates are those of all sources: a source left out no longer orders them, but what nobody else
    found stays among them. What it adds is the difference of two fits, with it and without it, made alike: against the
    stored weights a source of weight 0 would seem to help wherever fitting again does harm. All this is about weighted
    sums; a network over the stored one is judged as one more source, whose own order is by what it adds.

    Args:
        validation: group B, on which the weights of the fusion were fitted.
        served: how many candidates the first stage hands on; its unions depend on that.
        depth: length of the lists in `alone`.
        as_fitted: the retriever that was asked about `validation` when the weights were fitted, where `retriever`
            has learnt it since; None: the same.
    """
    validation = drawn(validation, retriever.config.train)
    seen = _seen_by_the_fit(as_fitted or retriever, validation)
    groups, summed = groups_of(retriever), retriever.linear
    fused = _fusion_of(retriever, list(retriever.fusion.transforms), seen, validation)
    alone = {name: _order_alone(retriever, name, sources, seen, validation) for name, sources in groups.items()}
    without = {name: _fusion_without(retriever, fused, sources, seen, validation) for name, sources in groups.items()}
    lists: dict[str, list[Candidates]] = {name: [] for name in groups}
    together: list[Candidates] = []
    others: dict[str, list[Candidates]] = {name: [] for name in groups}
    by_sum: list[Candidates] = []
    whole: list[Candidates] = []
    for start in range(0, len(asked), USERS_AT_ONCE):
        part = asked.take(np.arange(start, min(start + USERS_AT_ONCE, len(asked))))
        if retriever.network is not None:
            pool = retriever.unions(part.histories, served, exclude_known=exclude_known)
            whole.append(_best(pool, PLACES))
            lists.setdefault(NETWORK, []).append(_best(pool.ranked_by(pool.sources[NETWORK]), depth))
        pool = summed.unions(part.histories, served, exclude_known=exclude_known)
        by_sum.append(_best(pool, PLACES))
        pool = _impartial(pool)
        together.append(_best(pool.ranked_by(_score(fused, pool)), PLACES))
        for name in groups:
            lists[name].append(_best(pool.ranked_by(alone[name](pool)), depth))
            others[name].append(_best(pool.ranked_by(_score(without[name], pool)), PLACES))
    found = {name: concatenated(parts, depth) for name, parts in lists.items()}
    if not len(validation):
        return JudgedSources(found, [])
    cold = retriever.trend.untaken(np.arange(len(retriever.trend.ever)))
    ours = concatenated(together, PLACES)
    contributions = [
        _contribution(name, found[name], ours, concatenated(theirs, PLACES), asked, cold=cold)
        for name, theirs in others.items()
    ]
    if whole:
        ours, theirs = concatenated(whole, PLACES), concatenated(by_sum, PLACES)
        contributions.append(_contribution(NETWORK, found[NETWORK], ours, theirs, asked, cold=cold))
    return JudgedSources(found, contributions)


def _best(candidates: Candidates, depth: int) -> Candidates:
    """The first places, without the sources' scores."""
    best = candidates.head(depth)
    return Candidates(best.item_rows, best.score)


def _contribution(
    name: str, alone: Candidates, ours: Candidates, theirs: Candidates, asked: Holdout, *, cold: Mask
) -> Contribution:
    """Of a source, from the lists in its own order, in that of all sources, and in that of all others."""
    orders = (alone, ours, theirs)
    values = [ndcg10_by_slice(order.item_rows, asked, cold) for order in orders]
    slices = {
        part: SliceContribution(len(values[0][part]), *(float(gains[part].mean()) for gains in values))
        for part in values[0]
    }
    gain, together, without = (_gain(order, asked) for order in orders)
    return Contribution(name, float(gain.mean()), paired_bootstrap(together, without), slices)


def groups_of(retriever: Retriever) -> dict[str, tuple[str, ...]]:
    """Name → the sources of the fusion that it stands for; each but the kinds of towers in one group."""
    kinds = tuple(map(str, retriever.towers.kinds))
    joint = {TOWERS: kinds, TEXT: (TEXT, LAST_TEXT), TREND: retriever.trend.names}
    sources = dict.fromkeys(map(source_of, retriever.fusion.transforms))
    single = [name for name in sources if not any(name in names for names in joint.values())]
    each_kind = {kind: (kind,) for kind in kinds} if len(kinds) > 1 else {}
    return {TOWERS: kinds, **each_kind, **{name: (name,) for name in single}, **joint}


def _order_alone(
    retriever: Retriever, name: str, sources: tuple[str, ...], seen: Candidates, validation: Holdout
) -> Order:
    """By a source's own scores; by towers as the index ranks; by other groups as fits validation best."""
    if name == TOWERS:
        weights = {str(kind): np.float32(weight) for kind, weight in retriever.towers.weights.items()}
        return lambda candidates: np.sum([weights[kind] * candidates.sources[kind] for kind in sources], axis=0)
    if len(sources) == 1:
        return lambda candidates: candidates.sources[sources[0]]
    fusion = _fusion_of(retriever, sources, seen, validation)
    return lambda candidates: _score(fusion, candidates)


def _fusion_without(
    retriever: Retriever,
    fused: LinearFusion | None,
    sources: tuple[str, ...],
    seen: Candidates,
    validation: Holdout,
) -> LinearFusion | None:
    """Of all other sources; the very same where these have no weight among all."""
    left = [name for name in retriever.fusion.transforms if source_of(name) not in sources]
    if fused is not None and not any(weight for name, weight in fused.weights.items() if name not in left):
        return fused
    return _fusion_of(retriever, left, seen, validation)


def _seen_by_the_fit(retriever: Retriever, validation: Holdout) -> Candidates:
    """The candidates that the weights were fitted on: by towers that were not weighed yet."""
    unweighed = replace(retriever.towers, weights=dict.fromkeys(retriever.towers.weights, 1.0))
    return replace(retriever, towers=unweighed, network=None).unions(
        validation.histories, exclude_known=validation.exclude_known
    )


def _fusion_of(
    retriever: Retriever, names: Sequence[str], seen: Candidates, validation: Holdout
) -> LinearFusion | None:
    """Of these sources, weighed as validation says; None where nobody can say."""
    if not len(validation):
        return None
    columns = {name: retriever.fusion.transforms[name] for name in names}
    return fitted_fusion(seen, validation.targets, columns, retriever.trend)


def _score(fusion: LinearFusion | None, candidates: Candidates) -> Scores:
    """The fused score; without a fusion that by which the candidates stand."""
    return candidates.score if fusion is None else fusion.score(candidates)


def _impartial(candidates: Candidates) -> Candidates:
    """In an order that owes nothing to the fusion, for ties; popular items stay in theirs, where nothing else is."""
    by_row = candidates.ranked_by(-candidates.item_rows.astype(np.float32))
    return by_row.ranked_by(by_row.sources[POPULARITY]) if POPULARITY in by_row.sources else by_row


def _gain(candidates: Candidates, asked: Holdout) -> PerUser:
    """(n,) the main metric of each user."""
    top = candidates.head(10)
    return metrics_of(relevance_of(top, asked.targets), asked.targets.lengths, ks=(10,))[MAIN_METRIC]
