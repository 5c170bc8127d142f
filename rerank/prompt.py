"""Texts → token ids: histories cut in blocks, candidates cut at their end, every text tokenised once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rerank.hints import Hint
from rerank.packing import NO_AGE, Ids, Prompt
from store.errors import BadInput

Item = TypeVar("Item")


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
    hint: Hint = Field(
        Hint.NONE,
        description="word before a candidate's text for what retrieval knows of it: its rank, how it followed the "
        "history (transitions), or none",
    )

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


@dataclass(frozen=True)
class Wording:
    """What stands around the texts of a prompt, as token ids.

    `start (before_item text after_item)… ask`, and for each candidate `before_candidate text after_candidate`.

    Attributes:
        lead: put before every text when it is tokenised; a blank where the tokenizer marks the beginnings of words.
    """

    start: Ids
    before_item: Ids
    after_item: Ids
    ask: Ids
    before_candidate: Ids
    after_candidate: Ids
    lead: str = ""

    @property
    def around_history(self) -> int:
        """Tokens of a prefix that belong to no item."""
        return len(self.start) + len(self.ask)


def bert_wording(tokenizer: Any) -> Wording:
    """`[CLS] item [SEP] item [SEP] …` for the history, oldest first, and `item [SEP]` for each candidate."""
    none, end = np.empty(0, dtype=np.int64), np.array([tokenizer.sep_token_id], dtype=np.int64)
    start = np.array([tokenizer.cls_token_id], dtype=np.int64)
    return Wording(start, before_item=none, after_item=end, ask=none, before_candidate=none, after_candidate=end)


GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
"""White space and control characters."""
OPENING = "Items that one person chose, oldest first:\n"
QUESTION = "Would this person choose the next one, too? Answer yes or no.\n"
BULLET, NEWLINE, ANSWER = "-", "\n", "\nAnswer:"
GRADED_QUESTION = "How would this person rate the next one, from 1 to {grades}?\n"
RATING = "\nRating:\n"


def decoder_wording(tokenizer: Any, *, grades: int = 0) -> Wording:
    """A list of lines, a question, and for each candidate its line and `Answer:`, after which yes or no would follow.

    With `grades`, the question is for a rating, and a number from 1 to that would follow on a line of its own, where
    tokenizers give it without a blank.

    Every piece begins or ends with a line break, where byte-pair tokenizers cut anyway: the pieces' tokens are
    those of the whole text.
    """

    def ids(text: str) -> Ids:
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return Wording(
        start=np.concatenate([np.array(begin, dtype=np.int64), ids(OPENING)]),
        before_item=ids(BULLET),
        after_item=ids(NEWLINE),
        ask=ids(GRADED_QUESTION.format(grades=grades) if grades else QUESTION),
        before_candidate=ids(BULLET),
        after_candidate=ids(RATING if grades else ANSWER),
        lead=" ",
    )


def recent(history: Sequence[Item], config: PromptConfig) -> Sequence[Item]:
    """The newest items, of which some may still be too many: what is older is never read, whatever the lengths.

    Whole blocks fall out, so that `first_kept` of these keeps what it would have kept of all.
    """
    block = config.history_block_items
    surplus = len(history) - config.max_history_items
    return history[max(0, -(-surplus // block) * block) :]


def first_kept(lengths: Sequence[int], config: PromptConfig, *, around: int = 1) -> int:
    """How many of the oldest items to drop: the fewest whole blocks such that the rest is allowed.

    Args:
        lengths: tokens of each item, oldest first.
        config: its limits on items and tokens.
        around: tokens of the prefix that belong to no item.
    """
    block = config.history_block_items
    for dropped in range(0, len(lengths), block):
        kept = lengths[dropped:]
        if len(kept) <= config.max_history_items and around + sum(kept) <= config.max_history_tokens:
            return dropped
    return len(lengths)


class Prompter:
    """Makes `Prompt`s from texts, and remembers the ids of each text.

    Args:
        tokenizer: a fast tokenizer.
        config: limits.
        wording: what stands around the texts.
        cache_texts: how many texts' ids are remembered; the oldest are forgotten.

    Raises:
        BadInput: when not even a block of items fits.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig, wording: Wording, *, cache_texts: int = 200_000) -> None:
        self.config = config
        self.wording = wording
        self.tokenizer = tokenizer
        self._cache_texts = cache_texts
        self._ids: dict[str, Ids] = {}
        need = wording.around_history + config.history_block_items * config.max_item_tokens
        if need > config.max_history_tokens:
            raise BadInput(
                f"max_history_tokens is {config.max_history_tokens}, but with what stands around them a block of"
                f" {config.history_block_items} items may need {need}: raise it, or lower max_item_tokens"
            )

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer as transformers reads it."""
        self.tokenizer.save_pretrained(str(folder))

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, uncut, without special tokens; unknown texts are tokenised in one batch.

        A text is one line here, however it was written: a line break would let it pass for what stands around texts.
        """
        known = {text: self._ids[text] for text in texts if text in self._ids}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            lines = [GAPS.sub(" ", text).strip() for text in new]
            led = [self.wording.lead + line if line else line for line in lines]
            # A text that spells a special token is not to become one.
            encoded = self.tokenizer(led, add_special_tokens=False, split_special_tokens=True, verbose=False)[
                "input_ids"
            ]
            fresh = {text: np.array(ids, dtype=np.int64) for text, ids in zip(new, encoded, strict=True)}
            known |= fresh
            self._ids |= fresh
            for oldest in list(self._ids)[: max(0, len(self._ids) - self._cache_texts)]:
                del self._ids[oldest]
        return [known[text] for text in texts]

    def prompt(self, history: Sequence[Ids], candidates: Sequence[Ids], *, about: Ids | None = None) -> Prompt:
        """One prompt from the ids that `tokenize` gave.

        Args:
            history: ids of each item, oldest first.
            candidates: ids of each candidate.
            about: ids of what is known of the user, which stands before the history like one more item.
        """
        wording = self.wording
        item_limit = self.config.max_item_tokens - len(wording.before_item) - len(wording.after_item)
        candidate_limit = (
            self.config.max_candidate_tokens - len(wording.before_candidate) - len(wording.after_candidate)
        )
        newest = recent(history, self.config)
        items = [np.concatenate([wording.before_item, ids[:item_limit], wording.after_item]) for ids in newest]
        start = wording.start
        if about is not None and len(about):
            start = np.concatenate([start, wording.before_item, about[:item_limit], wording.after_item])
        around = len(start) + len(wording.ask)
        items = items[first_kept([len(ids) for ids in items], self.config, around=around) :]
        ages = np.repeat(np.arange(len(items))[::-1], [len(ids) for ids in items])
        outside = [np.full(len(part), NO_AGE) for part in (start, wording.ask)]
        return Prompt(
            prefix=np.concatenate([start, *items, wording.ask]),
            ages=np.concatenate([outside[0], ages, outside[1]]).astype(np.int64),
            candidates=tuple(
                np.concatenate([wording.before_candidate, ids[:candidate_limit], wording.after_candidate])
                for ids in candidates
            ),
            cut_candidates=sum(len(ids) > candidate_limit for ids in candidates),
            block_items=self.config.history_block_items,
        )
