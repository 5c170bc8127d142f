"""A weighted sum of score columns, fitted so that what a user took next comes first."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from data.schema import Candidates, Histories, Mask, Scores


class Transform(StrEnum):
    """How a source's scores become a column."""

    RAW = "raw"
    LOG = "log"
    """log(score / typical score + 0.01): for sums of counts, where 0 means never seen together."""
    LOG_RISE = "log rise"
    """LOG less what it makes of 0, for a source that is silent about some items: it leaves these where they are."""


LOG_FLOOR = 0.01
PULL_ALONE = 1e-3
"""Towards 0, of a source by itself: one that is always right would have no finite weight."""


@dataclass(frozen=True)
class LinearFusion:
    """Weights over named sources of Candidates.

    Attributes:
        transforms: source → how its scores become a column.
        weights: source → its weight; 0 leaves the source out.
        typical: source → mean of its positive scores where the fusion was fitted, the unit of both logarithms.
        ranges: source → lowest and highest score that it may add, for sources that cannot be trusted with more.
    """

    transforms: Mapping[str, Transform]
    weights: Mapping[str, float]
    typical: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def score(self, candidates: Candidates) -> Scores:
        """(B, K) float32 fused scores; -inf where there is no item."""
        total = np.zeros(candidates.item_rows.shape, dtype=np.float32)
        for part in self.parts(candidates).values():
            total += part
        return np.where(candidates.present, total, -np.inf).astype(np.float32)

    def parts(self, candidates: Candidates) -> dict[str, Scores]:
        """source → (B, K) float32, what it adds to the fused score; sources of weight 0 are left out."""
        return {
            name: np.float32(weight)
            * column(candidates, name, self.transforms[name], typical=self.typical[name], within=self.ranges.get(name))
            for name, weight in self.weights.items()
            if weight
        }

    @classmethod
    def fit(
        cls,
        candidates: Candidates,
        targets: Histories,
        transforms: Mapping[str, Transform],
        *,
        signed: Collection[str] = (),
        l2: float = 1e-3,
        stiffness: Mapping[str, float] | None = None,
        scaled_like: Mapping[str, str] | None = None,
        scaled_within: Mapping[str, Mask] | None = None,
        around: Collection[str] = (),
    ) -> "LinearFusion":
        """Minimises -log of what a softmax over each user's candidates gives to all of the targets together.

        With one target this is the listwise softmax. With several it asks for any of them in the first place, and
        not for all of them alike, as NDCG@10 does where targets are many (the sum of Miech et al. 2020, MIL-NCE).
        Users whose targets were not retrieved teach nothing here (they still count as misses in every
        evaluation). Columns are scaled to unit variance inside, so that `l2` means the same for each.
        A constant column gets 0. Without a single retrieved target all others are equal after scaling,
        and those in `signed`, which may get a negative weight, 0.

        Args:
            l2: pull of every weight towards 0, or as `around` says.
            stiffness: source → how many times as hard it is pulled; others once.
            scaled_like: source → another, by whose variance it is scaled: a pull then means the same for both, however
                few users the first has a column for.
            scaled_within: source → (B, K), the candidates over which its variance is taken: a pull then means the same
                for it however few they are. One that is constant there is scaled as others are.
            around: the weights are pulled towards the one of these sources that explains the targets best alone, at the
                weight that it has alone: where few users teach little, the list is then that source's, and not an even
                mixture of good and bad.
        """
        typical = {name: typical_score(candidates, name) for name in transforms}
        columns = np.stack(
            [column(candidates, name, how, typical=typical[name]) for name, how in transforms.items()], axis=2
        ).astype(np.float64)
        present = candidates.present
        spread = columns[present].std(axis=0) if present.any() else np.ones(columns.shape[2])
        # Relative, since the mean of a large constant is rounded and leaves a spread that means nothing.
        varies = spread > 1e-6 * np.abs(columns).max(axis=(0, 1), initial=0)
        spread = np.where(varies, spread, 1.0)
        place = {name: number for number, name in enumerate(transforms)}
        spread = spread[[place[(scaled_like or {}).get(name, name)] for name in transforms]]
        for name, where in (scaled_within or {}).items():
            inside = columns[..., place[name]][present & where]
            if len(inside) and inside.std() > 1e-6 * np.abs(inside).max():
                spread[place[name]] = inside.std()
        relevant = targets_among(candidates, targets)
        usable = relevant.any(axis=1)
        free = np.array([name in signed for name in transforms])
        weights = np.where(free, 0.0, 1.0)
        if usable.any():
            pull = l2 * np.array([(stiffness or {}).get(name, 1.0) for name in transforms])
            scaled = columns[usable] / spread, present[usable], relevant[usable]
            chosen = np.flatnonzero([name in around for name in transforms] & varies)
            centre = _best_alone(*scaled, chosen=chosen, free=free) if len(chosen) else np.zeros(len(free))
            weights, _ = _fit_listwise(*scaled, free=free, pull=pull, centre=centre)
        weights = np.where(varies, weights / spread, 0.0)
        return cls(dict(transforms), dict(zip(transforms, weights.tolist(), strict=True)), typical)

    def save(self, path: Path) -> None:
        """Writes the weights as JSON."""
        saved = {name: dict(getattr(self, name)) for name in ("transforms", "weights", "typical", "ranges")}
        path.write_text(json.dumps(saved, indent=2))

    @classmethod
    def load(cls, path: Path) -> "LinearFusion":
        """Reads what `save` wrote, also before there were ranges."""
        saved = json.loads(path.read_text())
        ranges = {name: (low, high) for name, (low, high) in saved.get("ranges", {}).items()}
        transforms = {name: Transform(how) for name, how in saved["transforms"].items()}
        return cls(transforms, saved["weights"], saved["typical"], ranges)


def typical_score(candidates: Candidates, name: str) -> float:
    """Mean of a source's positive scores; 1 where it has none."""
    scores = candidates.sources[name][candidates.present]
    positive = scores[scores > 0]
    return float(positive.mean()) if len(positive) else 1.0


def column(
    candidates: Candidates, name: str, how: Transform, *, typical: float, within: tuple[float, float] | None = None
) -> Scores:
    """(B, K) float32, one source as a column, its scores clipped to a range; 0 where there is no item."""
    given = candidates.sources[name] if within is None else np.clip(candidates.sources[name], *within)
    scores = np.where(candidates.present, given, 0.0).astype(np.float32)
    if how is Transform.RAW:
        return scores
    relative = np.maximum(scores, 0.0) / np.float32(typical)
    if how is Transform.LOG_RISE:
        return np.log1p(relative / np.float32(LOG_FLOOR)).astype(np.float32)
    logs = np.log(relative + np.float32(LOG_FLOOR))
    return np.where(candidates.present, logs, 0.0).astype(np.float32)


def targets_among(candidates: Candidates, targets: Histories) -> npt.NDArray[np.bool_]:
    """(B, K), true where the candidate is one of that user's targets."""
    relevant = np.zeros(candidates.item_rows.shape, dtype=bool)
    longest = int(targets.lengths.max(initial=0))
    for step in range(longest):
        wanted = targets.last(step + 1)[:, step]  # (B,)
        relevant |= (candidates.item_rows == wanted[:, None]) & candidates.present
    return relevant


def _best_alone(
    columns: npt.NDArray[np.floating],
    present: npt.NDArray[np.bool_],
    relevant: npt.NDArray[np.bool_],
    *,
    chosen: npt.NDArray[np.integer],
    free: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """(F,) 0 but for the weight of the one among the `chosen` columns that explains the targets best by itself."""
    pull, nothing = np.array([PULL_ALONE]), np.zeros(1)
    alone = [
        _fit_listwise(columns[:, :, [place]], present, relevant, free=free[[place]], pull=pull, centre=nothing)
        for place in chosen
    ]
    best = int(np.argmin([loss for _, loss in alone]))
    centre = np.zeros(columns.shape[2])
    centre[chosen[best]] = alone[best][0][0]
    return centre


def _fit_listwise(
    columns: npt.NDArray[np.floating],
    present: npt.NDArray[np.bool_],
    relevant: npt.NDArray[np.bool_],
    *,
    free: npt.NDArray[np.bool_],
    pull: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], float]:
    """(F,) the weights, and what is left of the loss."""
    n_users = len(columns)

    def loss_and_gradient(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits, away = columns @ weights, weights - centre
        every, any_target = (_softmax(np.where(which, logits, -np.inf)) for which in (present, relevant))
        loss = (every.log_total - any_target.log_total).mean() + float(away @ (pull * away))
        too_low = np.einsum("bk,bkf->f", every.share - any_target.share, columns) / n_users
        return float(loss), too_low + 2 * pull * away

    start = np.where(free, 0.0, 1.0 / len(free))
    bounds = [(None if signed else 0, None) for signed in free]
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(fitted.x, dtype=np.float64), float(fitted.fun)


@dataclass(frozen=True)
class _Softmax:
    """(B, K) shares, and (B,) the logarithm of the sum that they are shares of."""

    share: npt.NDArray[np.float64]
    log_total: npt.NDArray[np.float64]


def _softmax(logits: npt.NDArray[np.float64]) -> _Softmax:
    """Of (B, K) logits, each row with a finite one."""
    largest = logits.max(axis=1, keepdims=True)
    mass = np.exp(logits - largest)
    total = mass.sum(axis=1, keepdims=True)
    return _Softmax(mass / total, (largest + np.log(total))[:, 0])
