"""The first stage for callers in several threads, searched for together where they come at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.schema import Candidates, Histories, Mask
from recommend.microbatch import MicroBatch
from retrieval.retriever import Retriever

TOGETHER = 16
"""Callers whose histories are searched for in one go."""


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """What one caller wants; `history` is a single list."""

    history: Histories
    wanted: int
    exclude_known: bool
    where: Mask | None

    @property
    def kind(self) -> tuple[int, bool, int]:
        """Equal for questions that one search can answer; a filter is kept, and known, as one object."""
        return self.wanted, self.exclude_known, id(self.where)


class GatheredRetrieval:
    """Candidates of a retriever, a history at a time."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._searches = MicroBatch(self._search, most=TOGETHER)

    def candidates(
        self, history: Histories, wanted: int, *, exclude_known: bool, where: Mask | None = None
    ) -> Candidates:
        """As `Retriever.candidates` for a single list."""
        return self._searches(_Question(history, wanted, exclude_known, where))

    def _search(self, questions: Sequence[_Question]) -> list[Candidates]:
        alike: dict[tuple[int, bool, int], list[int]] = {}
        for place, question in enumerate(questions):
            alike.setdefault(question.kind, []).append(place)
        found: dict[int, Candidates] = {}
        for places in alike.values():
            one = questions[places[0]]
            histories = one.history if len(places) == 1 else Histories.joined([questions[at].history for at in places])
            lists = self._retriever.candidates(histories, one.wanted, exclude_known=one.exclude_known, where=one.where)
            for row, place in enumerate(places):
                found[place] = lists if len(places) == 1 else lists.take(np.array([row]))
        return [found[place] for place in range(len(questions))]
