"""The weights of a retriever's sources, fitted on validation, and which of its candidates have weights of their own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.schema import Candidates, Histories, Holdout
from eval.folds import crossed_ndcg10, folds
from eval.metrics import PerUser, ndcg10
from eval.significance import helps
from fusion.linear import LinearFusion, Transform, targets_among
from fusion.network import FusionNetwork
from retrieval.own_weights import AFTER_SHORT, OF_COLD, OwnWeights, Part, cold_columns, is_own, short_columns, source_of
from retrieval.retriever import LAST_TEXT, Retriever, transforms
from retrieval.trackers import Log
from retrieval.trend import Trend

LEAST_PULL, FEW_USERS_PULL = 1e-3, 3.0
"""Pull of the fusion's weights towards the best source alone: the first for many users, the second shared by few, so
that what is assumed beforehand weighs as much as a number of users and not as much as a share of them."""
STIFFNESS_OF_SHORT = 10.0
"""Pull towards 0 of what short histories add to a weight, as a multiple of that of the weight itself. Cold items are
pulled once: their scores may be on quite another scale, and there must be so many targets among them."""
STAGES = {Part.SHORT: "fusion by length", Part.COLD: "fusion of cold items"}
"""Names in the log."""


@dataclass(frozen=True)
class Weighed:
    """A retriever, its weights fitted where there is validation.

    Attributes:
        ndcg10: of its fused lists, of the users on whom the weights were fitted; 0 without.
        own: what was found about each part of the candidates that the settings ask about.
    """

    retriever: Retriever
    ndcg10: float = 0.0
    own: Sequence[OwnWeights] = ()


def with_fitted_fusion(
    retriever: Retriever,
    validation: Holdout,
    log: Log,
    *,
    learners: Holdout | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Weighed:
    """The same retriever with its sources weighed on the candidates of validation users.

    Args:
        learners: users of group A, who teach the network over the weighted sum; None: there is none.
        say: is told what takes long.
    """
    retriever = replace(retriever, network=None)
    # Whole unions: lists cut by the present weights would lean towards them.
    candidates = retriever.unions(validation.histories, exclude_known=validation.exclude_known)
    kinds, trend = retriever.towers.kinds, retriever.trend
    towers = LinearFusion.fit(candidates, validation.targets, dict.fromkeys(kinds, Transform.RAW))
    columns = transforms(kinds, trend)
    own = []
    for asked in _parts(retriever, candidates, validation):
        found = asked.tried(candidates, validation.targets, columns, trend)
        log({"stage": STAGES[found.part], "targets": found.targets, "gain_of_ndcg@10": found.gain, "kept": found.kept})
        columns = {**columns, **asked.columns} if found.kept else columns
        own.append(found)
    fusion = fitted_fusion(candidates, validation.targets, columns, trend)
    fused = float(ndcg10(candidates.ranked_by(fusion.score(candidates)), validation.targets).mean())
    weights = {name: round(weight, 4) for name, weight in fusion.weights.items()}
    log({"stage": "fusion", "weights": weights, "validation_ndcg@10": round(fused, 5)})
    if any(towers.weights.values()):
        of_kinds = {kind: towers.weights[kind] for kind in kinds}
        retriever = replace(retriever, towers=replace(retriever.towers, weights=of_kinds))
    weighed = Weighed(replace(retriever, fusion=fusion), fused, tuple(own))
    return weighed if learners is None else _with_network(weighed, candidates, validation, learners, log, say)


def _with_network(
    weighed: Weighed,
    candidates: Candidates,
    validation: Holdout,
    learners: Holdout,
    log: Log,
    say: Callable[[str], None],
) -> Weighed:
    """With a network over the weighted sum, if cross-validation over the learners gains by it more than chance gives.

    It also says after how many epochs. Group B, whose answers fitted the sum, is asked for nothing but the figure.
    """
    retriever = weighed.retriever
    config, fusion = retriever.config.network, retriever.fusion
    known, seed = np.flatnonzero(learners.histories.lengths > 0), retriever.config.train.seed
    if not config.epochs or not len(known):
        return weighed
    taught = learners.take(np.sort(np.random.default_rng(seed).permutation(known)[: config.users]))
    started = time.monotonic()
    say(f"a network over all sources learns from {len(taught):,} users, beyond retriever.train.budget_minutes")
    lists = retriever.candidates(taught.histories, config.reach, exclude_known=taught.exclude_known)
    sources = [name for name in fusion.transforms if not is_own(name)]

    def trained(some: Candidates, targets: Histories, watched: Callable[[int, FusionNetwork], None]) -> None:
        FusionNetwork.train(some, targets, fusion, sources=sources, config=config, seed=seed, watched=watched)

    gains = np.zeros((config.epochs + 1, len(taught)))  # of each epoch, and of none
    for inside, outside in folds(len(taught)):
        asked, targets = lists.take(outside), taught.targets.take(outside)
        before = ndcg10(asked, targets)

        def judged(epoch: int, network: FusionNetwork) -> None:
            gains[epoch, outside] = ndcg10(network.reordered(asked, fusion), targets) - before  # noqa: B023

        trained(lists.take(inside), taught.targets.take(inside), judged)
    best = int(gains.mean(axis=1).argmax())
    told = {"stage": "network", "users": len(taught), "epoch": best, "gain_of_ndcg@10": round(gains[best].mean(), 5)}
    epochs: dict[int, FusionNetwork] = {}
    if best and helps(gains[best]):
        trained(lists, taught.targets, lambda epoch, network: epochs.update({epoch: network.copy()}))
    told["minutes"] = round((time.monotonic() - started) / 60, 3)
    if best not in epochs:
        log({**told, "kept": False})
        return weighed
    retriever = replace(retriever, network=epochs[best])
    ranked = candidates.ranked_by(fusion.score(candidates))
    reached = float(ndcg10(epochs[best].reordered(ranked, fusion), validation.targets).mean())
    log({**told, "validation_ndcg@10": round(reached, 5), "kept": True})
    return replace(weighed, retriever=retriever, ndcg10=reached)


def fitted_fusion(
    candidates: Candidates, targets: Histories, columns: Mapping[str, Transform], trend: Trend
) -> LinearFusion:
    """The weights of all or some of a retriever's sources."""
    # Beside a profile the last item, beside late weeks all time: what is left is a contrast, of either sign.
    signed = (LAST_TEXT, *trend.names, *filter(is_own, columns))
    pull = max(LEAST_PULL, FEW_USERS_PULL / max(len(candidates), 1))
    short = [name for name in columns if name.endswith(AFTER_SHORT)]
    cold = trend.untaken(np.maximum(candidates.item_rows, 0))
    return LinearFusion.fit(
        candidates,
        targets,
        columns,
        signed=signed,
        l2=pull,
        stiffness=dict.fromkeys(short, STIFFNESS_OF_SHORT),
        scaled_like={name: source_of(name) for name in short},
        scaled_within={name: cold for name in columns if name.endswith(OF_COLD)},
        around=[name for name in columns if not is_own(name)],
    )


@dataclass(frozen=True)
class AskedPart:
    """A part of the candidates that may have weights of its own.

    Attributes:
        columns: its own, beside those of all.
        targets: of validation in this part, among the candidates.
        needed: fewer of them are not learnt from.
    """

    part: Part
    columns: Mapping[str, Transform]
    targets: int
    needed: int

    def tried(
        self, candidates: Candidates, targets: Histories, shared: Mapping[str, Transform], trend: Trend
    ) -> OwnWeights:
        """Kept if they gain by cross-validation over the users more than a standard error, beside `shared` columns."""
        if self.targets < self.needed:
            return OwnWeights(self.part, self.targets, self.needed, None, kept=False)
        gains = _crossed_gains(candidates, targets, {**shared, **self.columns}, shared, trend)
        return OwnWeights(self.part, self.targets, self.needed, round(float(gains.mean()), 5), kept=helps(gains))


def _parts(retriever: Retriever, candidates: Candidates, validation: Holdout) -> Iterator[AskedPart]:
    """Those that the settings ask about."""
    settings, trend = retriever.config, retriever.trend
    columns = transforms(retriever.towers.kinds, trend)
    found = targets_among(candidates, validation.targets)
    if settings.short_history:
        short = found[validation.histories.lengths <= settings.short_history]
        yield AskedPart(Part.SHORT, short_columns(columns), int(short.sum()), 0)
    if settings.cold_targets:
        cold = found & trend.untaken(np.maximum(candidates.item_rows, 0))
        yield AskedPart(Part.COLD, cold_columns(columns, trend), int(cold.sum()), settings.cold_targets)


def _crossed_gains(
    candidates: Candidates,
    targets: Histories,
    more: Mapping[str, Transform],
    fewer: Mapping[str, Transform],
    trend: Trend,
) -> PerUser:
    """(B,) what each user's NDCG@10 gains by some columns over fewer, by weights fitted without the user."""

    def reached(columns: Mapping[str, Transform]) -> PerUser:
        return crossed_ndcg10(candidates, targets, lambda some, taken: fitted_fusion(some, taken, columns, trend).score)

    return reached(more) - reached(fewer)
