"""Ratings as something to learn from: the scale of a log, lists of rated items, and how well ratings are foretold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data.schema import NO_ITEM, Histories, Rows, Scores
from rerank.figures import ListFigures
from rerank.lists import DrawnList, TrainingLists
from rerank.packed import PackedReranker
from rerank.packing import Prompt
from store.errors import BadInput

MOST_GRADES = 20
"""Different ratings of one scale; with more they are measurements, not grades."""
LISTS_AT_ONCE = 8


def rating_scale(log: Histories, stated: tuple[float, ...] = ()) -> tuple[float, ...]:
    """The different ratings of a log, lowest first; the `stated` scale where there is one.

    Raises:
        BadInput: when the log has no ratings, or they make no scale, or are not all on the stated one.
    """
    remedy = "or train with another reranker.train.objective"
    ratings = np.zeros(0) if log.ratings is None else log.ratings[~np.isnan(log.ratings)]
    if not len(ratings):
        raise BadInput(
            "reranker.train.objective is graded, but the log has no ratings: prepare it again with --map rating=COLUMN,"
            f" {remedy}"
        )
    found = tuple(np.unique(ratings).tolist())
    if stated:
        strangers = sorted(set(found) - {float(np.float32(grade)) for grade in stated})
        if strangers:
            raise BadInput(f"the log has ratings of {strangers[0]:g}, which are not in grades {list(stated)}: add them")
        return stated
    if not 2 <= len(found) <= MOST_GRADES:
        raise BadInput(
            f"reranker.train.objective is graded, but the log's ratings take {len(found):,} different values, where a"
            f" scale has 2 to {MOST_GRADES}: round them, {remedy}"
        )
    return found


def rated_lists(
    texts: Sequence[str],
    histories: Histories,
    grades: tuple[float, ...],
    *,
    size: int,
    per_user: int,
    rng: np.random.Generator,
) -> TrainingLists:
    """Examples from inside the histories: what came before a place, and the ratings of the items from there on.

    Args:
        texts: text of each item, by row.
        histories: with ratings.
        grades: the rating scale, lowest first.
        size: items from a place on, of which the rated ones make a list.
        per_user: at most so many places of each history.
        rng: chooses the places.
    """
    assert histories.ratings is not None
    scale = np.array(grades, dtype=np.float32)
    place_of = np.where(np.isnan(histories.ratings), NO_ITEM, np.searchsorted(scale, histories.ratings))
    prefixes: list[list[int]] = []
    owners: list[int] = []
    items: list[Rows] = []
    given: list[Rows] = []
    for user in range(len(histories)):
        rows, own = histories[user], place_of[histories.offsets[user] : histories.offsets[user + 1]]
        for start in rng.permutation(np.arange(1, len(rows)))[:per_user].tolist():
            rated = start + np.flatnonzero(own[start : start + size] != NO_ITEM)
            if len(rated):
                prefixes.append(rows[:start].tolist())
                owners.append(user)
                items.append(_padded(rows[rated], size))
                given.append(_padded(own[rated], size))
    shape = (len(items), size)
    return TrainingLists(
        texts,
        Histories.of(prefixes, about=None if histories.about is None else histories.about[owners].tolist()),
        np.full(len(items), NO_ITEM, dtype=np.int64),
        np.array(items, dtype=np.int64).reshape(shape),
        grades=np.array(given, dtype=np.int64).reshape(shape),
    )


def graded_figures(
    reranker: PackedReranker[Any],
    prompts: Sequence[Prompt],
    drawn: Sequence[DrawnList],
    *,
    autocast: torch.dtype | None = None,
) -> ListFigures:
    """Loss in nats of the grades given, and NDCG@10 of each list by the expected ratings, a grade's place as its gain.

    Lists in which all grades are alike have no order and are left out of the NDCG; without others it is 0.
    """
    losses, gains = [], []
    scale = torch.tensor(reranker.config.grades)
    for start in range(0, len(prompts), LISTS_AT_ONCE):
        part = slice(start, start + LISTS_AT_ONCE)
        with torch.inference_mode():
            logits = reranker.grade_logits(prompts[part], autocast=autocast).float().cpu()  # (ΣK, G)
        expected = (logits.softmax(dim=-1) @ scale).numpy()
        chances = logits.log_softmax(dim=-1).numpy()
        ends = np.cumsum([len(made.item_rows) for made in drawn[part]])
        for made, end in zip(drawn[part], ends.tolist(), strict=True):
            assert made.grades is not None
            own = slice(end - len(made.grades), end)
            losses.append(float(-chances[own][np.arange(len(made.grades)), made.grades].mean()))
            if len(set(made.grades.tolist())) > 1:
                gains.append(_ndcg10(expected[own], made.grades))
    return ListFigures(float(np.mean(losses)), float(np.mean(gains)) if gains else 0.0)


def _ndcg10(scores: Scores, gains: Rows) -> float:
    discounts = 1 / np.log2(np.arange(2, 12))[: len(gains)]
    reached = gains[np.argsort(-scores, kind="stable")][:10] @ discounts
    return float(reached / (np.sort(gains)[::-1][:10] @ discounts))


def _padded(rows: Rows, size: int) -> Rows:
    return np.pad(rows, (0, size - len(rows)), constant_values=NO_ITEM)
