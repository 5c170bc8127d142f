"""Weights of their own for short histories: every source as a second column, which is 0 after a long history.

What such a column is given is added to the source's common weight, and is drawn to 0 by the fit, so that a slice of
few users keeps near the weights of all.
"""

from collections.abc import Mapping

import numpy as np

from data.schema import Candidates, Mask, Scores
from fusion.linear import LinearFusion

AFTER_SHORT = " after a short history"


def after_short(name: str) -> str:
    """The column of a source that counts after short histories alone."""
    return name + AFTER_SHORT


def source_of(column: str) -> str:
    """The source that a column is of."""
    return column.removesuffix(AFTER_SHORT)


def with_short(sources: Mapping[str, Scores], is_short: Mask) -> dict[str, Scores]:
    """All sources (B, K), and each once more for the users (B,) whose history is short."""
    mine = is_short[:, None].astype(np.float32)
    return {**sources, **{after_short(name): scores * mine for name, scores in sources.items()}}


def parts_by_source(fusion: LinearFusion, candidates: Candidates) -> dict[str, Scores]:
    """source → (B, K) float32, what it adds to the fused score by all of its columns."""
    parts: dict[str, Scores] = {}
    for name, part in fusion.parts(candidates).items():
        source = source_of(name)
        parts[source] = parts[source] + part if source in parts else part
    return parts
