"""What every reranker is: texts in, one score for each candidate out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One user's question.

    Attributes:
        history: texts of the items taken, oldest first; may be empty.
        candidates: texts of the items to score, in any order; the order has no influence on the scores.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Answers to a sequence of requests, in their order.

    Attributes:
        scores: for each request (k,) float32, one for each candidate in its place; higher is better.
        prompt_tokens: for each request the tokens of its prompt, padding not counted.
        cached_tokens: how many of them were remembered, so that they did not go through the model again.
        cut_candidates: for each request how many candidates were longer than allowed and cut at their end.
    """

    scores: list[npt.NDArray[np.float32]]
    prompt_tokens: list[int]
    cached_tokens: list[int]
    cut_candidates: list[int]


class Reranker(Protocol):
    """Scores candidates in the light of a history.

    A score depends on the history and its own candidate alone: not on the other candidates, nor on the other
    requests of the call (within rounding, 1e-5).
    """

    name: str

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """One float32 score for each candidate of each request."""
        ...
