"""Scores of pairs of texts, for code that was written for sentence-transformers' CrossEncoder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data.schema import Scores
from rerank.base import RerankRequest, RerankResult
from rerank.progress import ProgressLine

Pair = Sequence[str]
"""A history, one item a line, oldest first, and a candidate."""


class PairScorer(ABC):
    """Whatever scores requests scores pairs, too."""

    @abstractmethod
    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`."""

    def predict(
        self,
        pairs: Sequence[Pair] | Pair,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """(n,) float32 scores of pairs as CrossEncoder.predict gives them; unbounded without an activation.

        Args:
            pairs: pairs, of which those of one history are read together; or a single one, for one score.
            batch_size: histories in one call; how much is read at once follows from the config's `max_batch_tokens`.
            show_progress_bar: whether to tell on a terminal how far it is.
            activation_fn: applied to all scores.
            convert_to_numpy: an array; else a list of tensors.
            convert_to_tensor: one tensor, whatever `convert_to_numpy` says.
        """
        alone = len(pairs) == 2 and isinstance(pairs[0], str)
        asked: Any = [pairs] if alone else pairs
        scores = torch.from_numpy(self._scores_of(asked, batch_size, shown=bool(show_progress_bar)))
        if activation_fn is not None:
            scores = activation_fn(scores)
        if alone:
            return scores[0] if convert_to_tensor or not convert_to_numpy else scores.numpy()[0]
        if convert_to_tensor:
            return scores
        return scores.numpy() if convert_to_numpy else list(scores)

    def _scores_of(self, pairs: Sequence[Pair], batch_size: int, *, shown: bool) -> Scores:
        together: dict[str, list[int]] = {}
        for place, (history, _) in enumerate(pairs):
            together.setdefault(history, []).append(place)
        requests = [
            RerankRequest(
                tuple(line for line in history.split("\n") if line), tuple(pairs[place][1] for place in places)
            )
            for history, places in together.items()
        ]
        found: list[Scores] = []
        with ProgressLine() as progress:
            for start in range(0, len(requests), batch_size):
                found += self.score(requests[start : start + batch_size]).scores
                if shown:
                    progress.show(f"{len(found)}/{len(requests)} histories", progress=len(found) / len(requests))
        scores = np.empty(len(pairs), dtype=np.float32)
        for places, values in zip(together.values(), found, strict=True):
            scores[places] = values
        return scores
