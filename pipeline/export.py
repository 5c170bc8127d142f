"""Recommendations for many users as a Parquet file that any judge can read."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import polars as pl

from data.schema import ITEM_ID, RANK, SCORE, USER_ID, Candidates, Holdout
from data.split import HeldOut, SplitKind, next_holdout
from pipeline.evaluate import Part, drawn_by_hash, evaluation_recommender
from pipeline.run_log import RunLog
from pipeline.workspace import Workspace
from recommend.item_filter import ALL_ITEMS, ItemFilter
from recommend.recommender import Recommender, Rerank
from recommend.release import load_stages
from store.artifacts import atomic_write
from store.errors import BadInput

USERS_AT_ONCE = 1024


class Asked(StrEnum):
    """Whose next item is recommended, and from which history."""

    VALIDATION = "validation"
    TEST = "test"
    NEXT = "next"


def export(
    ws: Workspace,
    asked: Asked,
    path: Path,
    *,
    k: int,
    depth: int | None,
    users: int,
    rerank: Rerank,
    towers_only: bool,
    log: RunLog,
    items: ItemFilter = ALL_ITEMS,
) -> int:
    """Writes user_id, item_id, rank (from 1) and score, k rows a user; returns the number of rows.

    `validation` and `test` use the evaluation fit, and histories that end before the held-out item;
    `next` uses what is published, and whole histories.

    Args:
        towers_only: one search in the index, without the other sources and the reranker.
        items: which may be recommended; where they are fewer than k, so are a user's rows.

    Raises:
        BadInput: when the part has no users, k exceeds the catalog, or no item passes the filter.
    """
    recommender = _recommender(ws, asked, with_reranker=rerank is not Rerank.NEVER and not towers_only, log=log)
    recommender.check_k(k)
    where = items.mask(recommender.catalog)
    holdout = _holdout(ws, asked, recommender)
    if not len(holdout):
        raise BadInput(f"the {asked} part of {ws.run.root} has no users; try --split next")
    holdout = drawn_by_hash(recommender.users, holdout, users)
    parts = []
    for start in range(0, len(holdout), USERS_AT_ONCE):
        part = holdout.take(np.arange(start, min(start + USERS_AT_ONCE, len(holdout))))
        if towers_only:
            found = recommender.retriever.search(part.histories, k, where=where)
        else:
            candidates = max(k, recommender.config.candidates)
            ranked = recommender.rank(part.histories, candidates=candidates, depth=depth, where=where)
            found = ranked.reranked.head(k)
        parts.append(_rows(recommender, part, found))
        log.say(f"{start + len(part):,} of {len(holdout):,} users")
    frame = pl.concat(parts)
    atomic_write(path, _parquet(frame))
    log.record({"event": "exported", "split": str(asked), "users": len(holdout), "rows": len(frame), "file": str(path)})
    return len(frame)


def check_output(path: Path) -> None:
    """Raises BadInput where a Parquet file cannot be put, before any work is done."""
    if path.suffix != ".parquet" or path.is_dir():
        found = "a folder" if path.is_dir() else f"a name that ends in {path.suffix or 'nothing'}"
        raise BadInput(f"-o {path} is {found}: recommendations are written as Parquet, name a file like recs.parquet")


def _holdout(ws: Workspace, asked: Asked, recommender: Recommender) -> Holdout:
    if asked is Asked.NEXT:
        # The data of the release, which a later prepare may have moved away from.
        holdout = next_holdout(recommender.dataset)
        # Where the test items were taken away, `next` stands for them: each user is asked then and there, not now.
        replayed = ws.config.split.kind is SplitKind.LEAVE_ONE_OUT and ws.config.split.holdout is HeldOut.VALIDATION
        return replace(holdout, histories=holdout.histories.asked_after_last()) if replayed else holdout
    return ws.split.validation if asked is Asked.VALIDATION else ws.split.test


def _recommender(ws: Workspace, asked: Asked, *, with_reranker: bool, log: RunLog) -> Recommender:
    if asked is Asked.NEXT:
        return Recommender(load_stages(ws.run, ws.run.release(), with_reranker=with_reranker), ws.config.recommending)
    return evaluation_recommender(ws, Part(asked), with_reranker=with_reranker, log=log)


def _rows(recommender: Recommender, asked: Holdout, candidates: Candidates) -> pl.DataFrame:
    users, places = np.nonzero(candidates.present)
    item_ids, user_ids = np.array(recommender.catalog.vocabulary.ids), np.array(recommender.users.ids)
    return pl.DataFrame(
        {
            USER_ID: user_ids[asked.user_rows[users]],
            ITEM_ID: item_ids[candidates.item_rows[users, places]],
            RANK: (places + 1).astype(np.int32),
            SCORE: candidates.score[users, places],
        }
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
