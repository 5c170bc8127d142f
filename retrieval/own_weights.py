"""Weights of their own for short histories and for cold items: a source as a second column, which is 0 elsewhere.

What such a column is given is added to the source's common weight, and is drawn to 0 by the fit, so that a part with
few targets keeps near the weights of all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from data.schema import Candidates, Mask, Scores
from fusion.linear import LinearFusion, Transform
from retrieval.trend import Trend

AFTER_SHORT = " after a short history"
OF_COLD = " of a cold item"


class Part(StrEnum):
    """Of the candidates, what may weigh the sources in its own way."""

    SHORT = "short histories"
    COLD = "cold items"


@dataclass(frozen=True)
class OwnWeights:
    """What validation said about weights of their own for one part.

    Attributes:
        targets: of group B in this part, among its candidates.
        needed: fewer of them are not learnt from.
        gain: of NDCG@10 by cross-validation over all users; None where it was not tried.
        kept: whether the part has weights of its own.
    """

    part: Part
    targets: int
    needed: int
    gain: float | None
    kept: bool

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "OwnWeights":
        """From its fields, as `asdict` gives them."""
        return cls(**{**saved, "part": Part(saved["part"])})

    @property
    def words(self) -> str:
        """In a sentence, for reports."""
        name, targets = self.part.value.capitalize(), f"{self.targets:,} targets of group B"
        shared = f"{name} share the weights of all"
        if self.gain is None:
            return f"{shared}: own ones were not tried on {targets}, where at least {self.needed:,} are asked for."
        gain = f"{self.gain:+.4f}".replace("-", "−")
        tried = f"{gain} NDCG@10 over all users by cross-validation, {targets}"
        return f"{name} have weights of their own: {tried}." if self.kept else f"{shared}: own ones gave {tried}."


def after_short(name: str) -> str:
    """The column of a source that counts after short histories alone."""
    return name + AFTER_SHORT


def of_cold(name: str) -> str:
    """The column of a source that counts for cold items alone: those that nobody took in training."""
    return name + OF_COLD


def source_of(column: str) -> str:
    """The source that a column is of."""
    return column.removesuffix(AFTER_SHORT).removesuffix(OF_COLD)


def is_own(column: str) -> bool:
    """Whether a column counts for a part of the candidates alone."""
    return source_of(column) != column


def with_short(sources: Mapping[str, Scores], is_short: Mask) -> dict[str, Scores]:
    """All sources (B, K), and each once more for the users (B,) whose history is short."""
    mine = is_short[:, None].astype(np.float32)
    return {**sources, **{after_short(name): scores * mine for name, scores in sources.items()}}


def with_cold(sources: Mapping[str, Scores], is_cold: Mask, trend: Trend) -> dict[str, Scores]:
    """All sources (B, K), and each that can weigh cold items once more: 0 for the items (B, K) that have a past."""
    mine = is_cold.astype(np.float32)
    return {**sources, **{of_cold(name): sources[name] * mine for name in _weighing_cold(sources, trend)}}


def short_columns(columns: Mapping[str, Transform]) -> dict[str, Transform]:
    """The columns of short histories beside those of all."""
    return {after_short(name): how for name, how in columns.items()}


def cold_columns(columns: Mapping[str, Transform], trend: Trend) -> dict[str, Transform]:
    """The columns of cold items beside those of all."""
    # A score of 0 must be a column of 0, or items with a past would be moved, too.
    rising = {Transform.LOG: Transform.LOG_RISE}
    return {of_cold(name): rising.get(columns[name], columns[name]) for name in _weighing_cold(columns, trend)}


def _weighing_cold(names: Iterable[str], trend: Trend) -> list[str]:
    # Cold items were taken equally often, never, in every window and ever: one such column says what cold is worth.
    return [name for name in names if not is_own(name) and name not in trend.windows]


def parts_by_source(fusion: LinearFusion, candidates: Candidates) -> dict[str, Scores]:
    """source → (B, K) float32, what it adds to the fused score by all of its columns."""
    parts: dict[str, Scores] = {}
    for name, part in fusion.parts(candidates).items():
        source = source_of(name)
        parts[source] = parts[source] + part if source in parts else part
    return parts
