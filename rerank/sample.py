"""Lists drawn once and read again and again while a reranker learns from others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from rerank.hints import led
from rerank.lists import DrawnList, TrainingLists, draw_list
from rerank.packed import PackedReranker
from rerank.packing import Ids, Prompt
from rerank.prompt import Prompter
from rerank.train_config import RerankTrainConfig

LEAST_LISTS, TIMED_LISTS = 16, 4
"""Lists of a sample that has to be read in little time, at least; and those by which the pace is told."""


@dataclass(frozen=True)
class Sample:
    """Some lists with their prompts."""

    prompts: Sequence[Prompt]
    lists: Sequence[DrawnList]

    @classmethod
    def of(
        cls, lists: TrainingLists | None, most: int, *, prompter: Prompter, config: RerankTrainConfig
    ) -> Self | None:
        """At most so many lists that hold their target, always the same; None where there are none."""
        if lists is None or not len(lists.found if lists.scored else lists):
            return None
        rng = np.random.default_rng(config.seed + 1)
        if lists.scored:
            lists = lists.take(lists.found)
        lists = lists.take(np.sort(rng.permutation(len(lists))[:most]))
        size, share = config.list_size, config.hard_share_end
        drawn = [draw_list(lists, place, size=size, hard_share=share, rng=rng) for place in range(len(lists))]
        ids = prompter.tokenize(lists.texts)
        return cls([prompt_of(prompter, ids, lists, place, made) for place, made in enumerate(drawn)], drawn)

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(prompt.tokens for prompt in self.prompts)

    def tokens_a_second(self, *, reader: PackedReranker[Any], autocast: torch.dtype | None) -> float:
        """How fast the first lists are read."""
        few, began = self.prompts[:TIMED_LISTS], time.monotonic()
        reader.score_prompts(few, autocast=autocast)
        return sum(prompt.tokens for prompt in few) / max(time.monotonic() - began, 1e-9)

    def within(self, tokens: float) -> "Sample":
        """All lists, or as many, evenly spread, as hold about so many tokens; not fewer than LEAST_LISTS."""
        share = tokens / max(self.tokens, 1)
        count = len(self.lists) if share >= 1 else max(int(share * len(self.lists)), LEAST_LISTS)
        if count >= len(self.lists):
            return self
        kept = np.linspace(0, len(self.lists) - 1, count).round().astype(np.int64).tolist()
        return Sample([self.prompts[place] for place in kept], [self.lists[place] for place in kept])


def prompt_of(prompter: Prompter, ids: Sequence[Ids], lists: TrainingLists, place: int, drawn: DrawnList) -> Prompt:
    """The prompt of one list.

    Args:
        ids: tokens of each item's text, by row.
        place: of the list among `lists`.
        drawn: its items.
    """
    history = [ids[row] for row in lists.histories[place].tolist()]
    (about,) = prompter.tokenize([lists.histories.about_of(place)])
    rows = drawn.item_rows.tolist()
    if drawn.hints is None:
        return prompter.prompt(history, [ids[row] for row in rows], about=about)
    texts = led([lists.texts[row] for row in rows], prompter.config.hint, drawn.hints.tolist())
    return prompter.prompt(history, prompter.tokenize(texts), about=about)
