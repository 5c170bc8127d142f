"""Recommendations for many users as a Parquet file that any judge can read."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from config import Config
from data.columns import TableKind, renamed_columns
from data.schema import ITEM_ID, RANK, SCORE, USER_ID, Candidates, Histories, Holdout
from data.split import HeldOut, SplitKind, next_holdout
from data.vocabulary import Vocabulary
from pipeline.engine import HERE, Engine, EngineKind
from pipeline.evaluate import Part, drawn_by_hash, evaluation_stages
from pipeline.memory import less_for_lists, memory_for
from pipeline.run_log import RunLog
from pipeline.workspace import Workspace, open_workspace
from recommend.events import Events
from recommend.item_filter import ALL_ITEMS, ItemFilter
from recommend.ledger import LEDGER, Spent, add_to_ledger
from recommend.recommender import Recommender, Rerank
from recommend.release import load_stages
from rerank.budget import Cap
from store.artifacts import atomic_write
from store.errors import BadInput

K = 100
"""Items for each user unless another number is stated."""
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
    k: int | None,
    depth: int | None,
    users: int,
    rerank: Rerank,
    towers_only: bool,
    log: RunLog,
    items: ItemFilter = ALL_ITEMS,
    engine: Engine = HERE,
) -> "Exported":
    """Writes user_id, item_id, rank (from 1) and score, k rows a user; returns what was written, and how.

    The day's tokens are kept by all who make lists together, and what they cost goes into the ledger. Whoever the
    reranker fails for, or the day has no tokens left for, is written in retrieval order, and counted.

    `validation` and `test` use the evaluation fit, and histories that end before the held-out item;
    `next` uses what is published, and whole histories.

    Args:
        k: how many items; None: K, or all of a smaller catalog.
        towers_only: one search in the index, without the other sources and the reranker.
        items: which may be recommended; where they are fewer than k, so are a user's rows.
        engine: who does it; users go through it USERS_AT_ONCE at a time in any case, so that the rows are the same.

    Raises:
        BadInput: when the part has no users, k exceeds the catalog, or no item passes the filter.
        CorruptArtifact: when the ledger cannot be read.
    """
    wanted = Lists(asked, K if k is None else k, depth, rerank, towers_only, items)
    # Workers load their own; this process then only knows who is asked.
    here = engine.kind is EngineKind.PROCESS
    recommender = (wanted if here else replace(wanted, rerank=Rerank.NEVER)).recommender(ws, log)
    wanted = replace(wanted, k=recommender.checked_k(k, unless=K))
    make = wanted.maker(ws, recommender)
    holdout = _holdout(ws, asked, recommender)
    if not len(holdout):
        raise BadInput(f"the {asked} part of {ws.run.root} has no users; try --split next")
    holdout = drawn_by_hash(recommender.users, holdout, users)
    parts = [
        holdout.take(np.arange(start, min(start + USERS_AT_ONCE, len(holdout))))
        for start in range(0, len(holdout), USERS_AT_ONCE)
    ]
    opened = partial(_opened, ws.run.root.absolute(), ws.config, wanted)
    lists: list[_Made] = []
    with memory_for("recommending", less_for_lists(ws.config, recommender, "--rerank never")):
        for one in engine.made((lambda: make) if here else opened, parts):
            lists.append(one)
            add_to_ledger(ws.run.root / LEDGER, one.spent)
            log.say(f"{sum(other.spent.requests for other in lists):,} of {len(holdout):,} users")
        frame = pl.concat([one.frame for one in lists])
    atomic_write(path, _parquet(frame))
    exported = Exported(
        rows=len(frame),
        users=len(holdout),
        failed=sum(one.failed for one in lists),
        capped=sum(one.capped for one in lists),
        reason=next((one.reason for one in lists if one.reason), ""),
    )
    log.record({"event": "exported", "split": str(asked), **asdict(exported), "file": str(path)})
    return exported


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        failed: users whom the reranker failed for, so that they have retrieval order.
        capped: users for whom it read less, or nothing, since the day's tokens ran out.
        reason: of the first failure.
    """

    rows: int
    users: int
    failed: int = 0
    capped: int = 0
    reason: str = ""

    @property
    def words(self) -> str:
        """For people."""
        told = [f"{self.rows:,} rows"]
        if self.failed:
            told.append(f"{self.failed:,} users in retrieval order, since the reranker failed ({self.reason})")
        if self.capped:
            told.append(f"{self.capped:,} users for whom less was read, or nothing ({Cap.DAY})")
        return "; ".join(told)


@dataclass(frozen=True)
class _Made:
    """The rows of some users, what they cost, and how many of them got less than was asked for."""

    frame: pl.DataFrame
    spent: Spent
    failed: int = 0
    capped: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Lists:
    """Which lists are made; see `export`."""

    asked: Asked
    k: int
    depth: int | None
    rerank: Rerank
    towers_only: bool
    items: ItemFilter

    def recommender(self, ws: Workspace, log: RunLog) -> Recommender:
        """The stages that make them."""
        with_reranker = self.rerank is not Rerank.NEVER and not self.towers_only
        if self.asked is Asked.NEXT:
            stages = load_stages(ws.run, ws.run.release(), with_reranker=with_reranker)
        else:
            stages = evaluation_stages(ws, Part(self.asked), with_reranker=with_reranker, log=log)
        return Recommender(stages, ws.config.recommending, ledger=ws.run.root / LEDGER)

    def maker(self, ws: Workspace, recommender: Recommender) -> Callable[[Holdout], _Made]:
        """What makes the lists of some users.

        Raises:
            BadInput: when no item passes the filter.
        """
        renamed = renamed_columns(ws.config.data.columns, TableKind.CATALOG)
        where = self.items.mask(recommender.catalog, recommender.retriever.available, renamed=renamed)

        def made(part: Holdout) -> _Made:
            if self.towers_only:
                exclude_known = recommender.config.exclude_known
                started = time.perf_counter()
                found = recommender.retriever.search(part.histories, self.k, exclude_known=exclude_known, where=where)
                ms = (time.perf_counter() - started) * 1000
                return _Made(_rows(recommender, part, found), Spent(requests=len(part), retrieval_ms=ms))
            candidates = max(self.k, recommender.config.candidates)
            ranked = recommender.rank(part.histories, candidates=candidates, depth=self.depth, where=where)
            reasons = [why for why in ranked.degraded if why]
            return _Made(
                frame=_rows(recommender, part, ranked.reranked.head(self.k)),
                spent=ranked.spent,
                failed=len(reasons),
                capped=sum(cap is Cap.DAY for _, cap in ranked.cuts),
                reason=reasons[0] if reasons else "",
            )

        return made


def _opened(root: Path, config: Config, lists: Lists) -> Callable[[Holdout], _Made]:
    """What makes the lists of some users in a process that has only the run directory."""
    ws = replace(open_workspace(root), config=config)
    return lists.maker(ws, lists.recommender(ws, RunLog(None, "recommend", quiet=True)))


def check_output(path: Path) -> None:
    """Raises BadInput where a Parquet file cannot be put, before any work is done."""
    if path.suffix != ".parquet" or path.is_dir():
        found = "a folder" if path.is_dir() else f"a name that ends in {path.suffix or 'nothing'}"
        raise BadInput(f"-o {path} is {found}: recommendations are written as Parquet, name a file like recs.parquet")


def _holdout(ws: Workspace, asked: Asked, recommender: Recommender) -> Holdout:
    if asked is Asked.NEXT:
        # The data of the release, which a later prepare may have moved away from.
        holdout = _remembered(next_holdout(recommender.dataset), recommender.users, ws.run.root)
        if ws.config.split.holdout is not HeldOut.VALIDATION:
            return holdout
        # The test items were taken away, and `next` stands for them: what was disliked may have come after them, and
        # where each user lost their last, they are asked then and there, not now.
        histories = replace(holdout.histories, disliked=None)
        replayed = ws.config.split.kind is SplitKind.LEAVE_ONE_OUT
        return replace(holdout, histories=histories.asked_after_last() if replayed else histories)
    return ws.split.validation if asked is Asked.VALIDATION else ws.split.test


def _remembered(holdout: Holdout, users: Vocabulary, root: Path) -> Holdout:
    """Without users who asked to be forgotten and of whom the data set holds anything from before that."""
    events = Events.of(root)
    if events is None:
        return holdout
    kept = np.ones(len(holdout), dtype=np.bool_)
    logs = [log for log in (holdout.histories, holdout.histories.disliked) if log is not None]
    for user_id, until in events.forgotten(pl.Series(users.ids, dtype=pl.String)).rows():
        row = users.row(user_id)
        kept[row] = all(_is_later(log, row, until) for log in logs)
    return holdout.take(np.flatnonzero(kept))


def _is_later(log: Histories, row: int, until: int) -> bool:
    """Whether everything in a user's list is from after a moment."""
    if log.timestamps is None:
        return not len(log[row])
    return bool((log.timestamps[log.offsets[row] : log.offsets[row + 1]] > until).all())


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
