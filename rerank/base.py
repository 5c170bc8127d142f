"""What every reranker is: texts in, one score for each candidate out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from rerank.budget import Cap, Cut
from rerank.hints import Hint


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One user's question.

    Attributes:
        history: texts of the items taken, oldest first; may be empty.
        candidates: texts of the items to score, the most promising first; the order has no influence on the scores.
        limits: cap → tokens that may go through the model; what does not fit is left out as `budget.plan` says.
        max_ms: milliseconds that reading may take, a cap like the others.
        hints: kind → (k,) what retrieval knows of each candidate, for rerankers whose prompts tell it.
        about: what is known of the user, in words; it is read before the history and never left out.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    limits: Mapping[Cap, int] = field(default_factory=dict)
    max_ms: float | None = None
    hints: Mapping[Hint, Sequence[int]] = field(default_factory=dict)
    about: str = ""

    def later(self, ms: float) -> Self:
        """The same after so many milliseconds of waiting, which are part of those that it may take."""
        return self if self.max_ms is None else replace(self, max_ms=max(0.0, self.max_ms - ms))


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Answers to a sequence of requests, in their order.

    Attributes:
        scores: for each request (k,) float32, one for each candidate that was read, which are the first k of it;
            higher is better.
        prompt_tokens: for each request the tokens of its prompt, padding not counted.
        cached_tokens: how many of them were remembered, so that they did not go through the model again.
        cut_candidates: for each request how many candidates were longer than allowed and cut at their end.
        cuts: for each request what its budget left out, and because of which cap.
    """

    scores: list[npt.NDArray[np.float32]]
    prompt_tokens: list[int]
    cached_tokens: list[int]
    cut_candidates: list[int]
    cuts: list[tuple[Cut, Cap]]


class Reranker(Protocol):
    """Scores candidates in the light of a history.

    A score depends on the history and its own candidate alone: not on the other candidates, nor on the other
    requests of the call (within rounding, 1e-5).
    """

    name: str

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """One float32 score for each candidate of each request."""
        ...

    def calibrate(self) -> None:
        """Learns how fast it reads on this machine, so that `max_ms` can be kept; without it nothing is promised."""
        ...
