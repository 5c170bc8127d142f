"""Whom to rerank: where retrieval is sure of its order a language model can change little, and need not be asked."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from data.schema import Candidates
from eval.folds import folds

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FEATURES = ("log history", "first probability", "margin", "entropy", "mass below the tenth")
RIDGE = 1.0
ALIKE = 1e-12
"""Forecasts no further apart are the same: those of a gate that found nothing to tell users apart by."""


@dataclass(frozen=True)
class CurvePoint:
    """What a share of reranked users keeps of the gain of reranking everybody.

    Attributes:
        share: of users reranked, the most promising first by a gate that was fitted without them.
        gain: mean over all users, in NDCG@10.
        random: the same for a gate that draws that share by chance.
    """

    share: float
    gain: float
    random: float


@dataclass(frozen=True)
class Gate:
    """A linear forecast of what reranking gains for a user, and which forecast how many users exceed.

    Attributes:
        mean, spread: (F,) of the features where it was fitted.
        weights: (F,) of the standardised features.
        forecasts: (101,) percentiles of the forecast among the users it was fitted on, rising.
        curve: what shares of users keep of the gain, by cross-validation over users.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    forecasts: tuple[float, ...]
    curve: tuple[CurvePoint, ...]

    @classmethod
    def fit(cls, candidates: Candidates, history_lengths: npt.NDArray[np.int64], gains: Floats) -> Self:
        """Ridge regression of each user's gain on features of the retrieved list.

        Args:
            candidates: (B, K) in retrieval order, as many as are reranked.
            history_lengths: (B,) items that each user had.
            gains: (B,) NDCG@10 with reranking less that without. Without users nothing is forecast.
        """
        if not len(gains):
            nothing = (0.0,) * len(FEATURES)
            return cls(nothing, (1.0,) * len(FEATURES), nothing, (0.0,) * 101, ())
        features = gate_features(candidates, history_lengths)
        mean, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        standard = (features - mean) / spread
        weights = _ridge(standard, gains)
        forecasts = np.percentile(standard @ weights, np.arange(101))
        crossed = np.zeros(len(gains))
        for inside, outside in folds(len(gains)):
            crossed[outside] = standard[outside] @ _ridge(standard[inside], gains[inside])
        curve = _curve(crossed, gains)
        return cls(_floats(mean), _floats(spread), _floats(weights), _floats(forecasts), curve)

    def opens(self, candidates: Candidates, history_lengths: npt.NDArray[np.int64], *, share: float) -> Mask:
        """(B,) whose list is to be reranked, so that about `share` of users like those of the fit are.

        Users whom the forecast cannot tell apart are chosen by a hash of their list: always the same ones.
        """
        if share >= 1 or share <= 0:
            return np.full(len(candidates), share >= 1)
        standard = (gate_features(candidates, history_lengths) - self.mean) / self.spread
        forecasts = standard @ np.array(self.weights)
        threshold = float(np.interp(100 * (1 - share), np.arange(101), self.forecasts))
        alike = np.abs(forecasts - threshold) <= ALIKE
        return np.asarray(np.where(alike, _drawn(candidates) < share, forecasts > threshold))

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        curve = tuple(CurvePoint(**point) for point in saved.pop("curve"))
        return cls(**{name: tuple(values) for name, values in saved.items()}, curve=curve)


def _drawn(candidates: Candidates) -> Floats:
    """(B,) in [0, 1), by the first items of each list (Knuth's multiplicative hash)."""
    first = candidates.item_rows[:, :3].astype(np.uint64)
    mixed = (first * np.array([1, 31, 961][: first.shape[1]], dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    return np.asarray((mixed * np.uint64(2_654_435_761)) % np.uint64(2**32) / 2**32, dtype=np.float64)


def gate_features(candidates: Candidates, history_lengths: npt.NDArray[np.int64]) -> Floats:
    """(B, F) what a retrieved list says about itself.

    Fused scores are fitted by a softmax over the list, so their softmax is the probability that retrieval gives
    each candidate: of the first, of the first less the second, their entropy, and what lies beyond ten places.
    """
    present = candidates.present
    scores = np.where(present, candidates.score, -np.inf).astype(np.float64)
    top = np.where(present.any(axis=1), scores.max(axis=1, initial=-np.inf), 0.0)
    mass = np.where(present, np.exp(scores - top[:, None]), 0.0)
    shares = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-12)
    shares = -np.sort(-shares, axis=1)
    second = shares[:, 1] if shares.shape[1] > 1 else np.zeros(len(shares))
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    return np.stack(
        [np.log1p(history_lengths), shares[:, 0], shares[:, 0] - second, entropy, shares[:, 10:].sum(axis=1)], axis=1
    )


def _ridge(standard: Floats, gains: Floats) -> Floats:
    centred = gains - gains.mean()
    normal = standard.T @ standard + RIDGE * np.eye(standard.shape[1])
    return np.asarray(np.linalg.solve(normal, standard.T @ centred))


def _curve(forecast: Floats, gains: Floats) -> tuple[CurvePoint, ...]:
    order = np.argsort(-forecast, kind="stable")
    kept = np.concatenate([[0.0], np.cumsum(gains[order])]) / max(len(gains), 1)
    points = []
    for share in np.arange(0, 1.01, 0.1):
        gain = float(kept[round(share * len(gains))])
        points.append(CurvePoint(round(float(share), 1), gain, float(share * kept[-1])))
    return tuple(points)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
