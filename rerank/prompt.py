"""Texts → token ids: histories cut in blocks, candidates cut at their end, every text tokenised once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rerank.packing import NO_AGE, Ids, Prompt


class PromptConfig(BaseModel):
    """How much of a history and of an item the reranker reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_history_items: int = Field(10, ge=1, description="most recent items that are read")
    max_history_tokens: int = Field(240, ge=8, description="tokens of the whole history, special ones included")
    history_block_items: int = Field(
        4, ge=1, description="the oldest items fall out in blocks of so many, so that prefixes stay alike"
    )
    max_item_tokens: int = Field(20, ge=2, description="tokens of one history item, its end mark included")
    max_candidate_tokens: int = Field(20, ge=2, description="tokens of one candidate, its end mark included")

    @model_validator(mode="after")
    def _a_block_fits(self) -> "PromptConfig":
        items = min(self.history_block_items, self.max_history_items)
        need = 1 + items * self.max_item_tokens
        if need > self.max_history_tokens:
            raise ValueError(
                f"max_history_tokens is {self.max_history_tokens}, but a block of {items} items of"
                f" max_item_tokens {self.max_item_tokens} may need {need}: raise it, or lower one of the others"
            )
        if self.history_block_items > self.max_history_items:
            raise ValueError(
                f"history_block_items is {self.history_block_items}, more than max_history_items"
                f" {self.max_history_items}: lower it"
            )
        return self


def first_kept(lengths: Sequence[int], config: PromptConfig) -> int:
    """How many of the oldest items to drop: the fewest whole blocks such that the rest is allowed.

    Args:
        lengths: tokens of each item, oldest first.
        config: its limits on items and tokens.
    """
    block = config.history_block_items
    for dropped in range(0, len(lengths), block):
        kept = lengths[dropped:]
        if len(kept) <= config.max_history_items and 1 + sum(kept) <= config.max_history_tokens:
            return dropped
    return len(lengths)


class Prompter:
    """Makes `Prompt`s from texts with a tokenizer of the BERT family, and remembers the ids of each text.

    Layout: `[CLS] item [SEP] item [SEP] …` for the history, oldest first, and `item [SEP]` for each candidate.

    Args:
        tokenizer: a fast tokenizer with cls, sep and pad tokens.
        config: limits.
        cache_texts: how many texts' ids are remembered; the oldest are forgotten.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig, *, cache_texts: int = 200_000) -> None:
        self.config = config
        self.pad_id = int(tokenizer.pad_token_id)
        self._tokenizer = tokenizer
        self._start = np.array([tokenizer.cls_token_id], dtype=np.int64)
        self._end = np.array([tokenizer.sep_token_id], dtype=np.int64)
        self._cache_texts = cache_texts
        self._ids: dict[str, Ids] = {}

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, uncut, without special tokens; unknown texts are tokenised in one batch."""
        known = {text: self._ids[text] for text in texts if text in self._ids}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            encoded = self._tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            fresh = {text: np.array(ids, dtype=np.int64) for text, ids in zip(new, encoded, strict=True)}
            known |= fresh
            self._ids |= fresh
            for oldest in list(self._ids)[: max(0, len(self._ids) - self._cache_texts)]:
                del self._ids[oldest]
        return [known[text] for text in texts]

    def prompt(self, history: Sequence[Ids], candidates: Sequence[Ids]) -> Prompt:
        """One prompt from the ids that `tokenize` gave.

        Args:
            history: ids of each item, oldest first.
            candidates: ids of each candidate.
        """
        item_limit, candidate_limit = self.config.max_item_tokens - 1, self.config.max_candidate_tokens - 1
        # Older items than these fall out under any lengths; a whole number of blocks keeps the rule below.
        surplus = len(history) - self.config.max_history_items
        block = self.config.history_block_items
        recent = history[max(0, -(-surplus // block) * block) :]
        items = [np.concatenate([ids[:item_limit], self._end]) for ids in recent]
        items = items[first_kept([len(ids) for ids in items], self.config) :]
        ages = np.repeat(np.arange(len(items))[::-1], [len(ids) for ids in items])
        return Prompt(
            prefix=np.concatenate([self._start, *items]),
            ages=np.concatenate([[NO_AGE], ages]).astype(np.int64),
            candidates=tuple(np.concatenate([ids[:candidate_limit], self._end]) for ids in candidates),
            cut_candidates=sum(len(ids) > candidate_limit for ids in candidates),
        )
