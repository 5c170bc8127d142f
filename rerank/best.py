"""The best weights that a training has found so far, and what they were chosen by."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from rerank.figures import ListFigures

Weights = dict[str, torch.Tensor]


@dataclass
class Best:
    """The weights of the lowest validation loss; without validation, the last ones offered."""

    weights: Weights
    figures: ListFigures | None
    step: int = 0
    offers_since: int = 0

    def offer(self, weights: Weights, figures: ListFigures | None, step: int) -> None:
        """Keep these instead if they are better."""
        self.offers_since += 1
        if figures is None or self.figures is None or figures.loss < self.figures.loss:
            self.weights, self.figures, self.step, self.offers_since = weights, figures, step, 0

    def parts(self) -> dict[str, Any]:
        """For a checkpoint."""
        counts = {"step": self.step, "offers_since": self.offers_since}
        return {"weights": self.weights, "figures": plain(self.figures), **counts}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Self:
        """What `parts` gave."""
        return cls(parts["weights"], figures_from(parts["figures"]), parts["step"], parts["offers_since"])


def plain(figures: ListFigures | None) -> dict[str, float] | None:
    """As a dict."""
    return None if figures is None else asdict(figures)


def figures_from(plain: Mapping[str, float] | None) -> ListFigures | None:
    """What `plain` gave."""
    return None if plain is None else ListFigures(**plain)
