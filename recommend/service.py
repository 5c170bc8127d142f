"""The one object behind a server: answers, events and deletions, whatever is published or fails meanwhile."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from data.schema import Histories, Rows, Scores
from recommend.asking import Ask, Forgotten, Served
from recommend.batched import PLANNED
from recommend.events import Event, Events, Stored
from recommend.histories import Known, disliked_by, known_of
from recommend.item_writer import ItemChange, ItemState, ItemWriter
from recommend.keeper import Keeper
from recommend.ledger import LEDGER, Spent, add_to_ledger
from recommend.microbatch import Crowded
from recommend.overload import OverloadConfig
from recommend.recommender import RecommendConfig
from recommend.second_stage import SecondStage
from recommend.serving import Opener, Serving, ServingPlan
from recommend.supervised import RerankerFailure, supervised
from rerank.base import RerankRequest, RerankResult
from rerank.budget import Budget, Cap
from store.artifacts import Release, Run
from store.errors import BadInput, MissingStep, TandemError

LOOK_S = 0.5
"""Between two looks at what is published."""
SETTLE_S = 5.0
"""Between two entries into the ledger."""
AGAIN_S, AT_LAST_S = 1.0, 60.0
"""Between two attempts to open a release that cannot be served: twice as long after each."""
SIMILAR = 10
"""How many similar items are given unless another number is stated."""
NOBODY = np.zeros(0, dtype=np.int64)
_LOG = logging.getLogger(__name__)


class Service:
    """Safe for several threads; close it in the end.

    Args:
        run: the run directory.
        configure: reads how to recommend; called once for each release.
        overload: how to give way under load.
        time_limit_s: longest wait for the reranker's turn, and longest time that it may take for an answer.
        opener: starts a reranker; None: in a supervised child process.

    Raises:
        MissingStep, CorruptArtifact, Mismatch: when what is published cannot be served.
    """

    def __init__(
        self,
        run: Run,
        *,
        configure: Callable[[], RecommendConfig],
        overload: OverloadConfig,
        time_limit_s: float,
        opener: Opener | None = None,
    ) -> None:
        self.run = run
        self.events = Events(run.root)
        self.refused = ""
        """Why a newer release is not served; empty where none is waiting."""
        self.swaps = 0
        self.watchers: list[Callable[[], object]] = []
        """Called at every look, such as whoever shows what there is to see."""
        self._under_way = 0
        self._spent = Spent()
        self._lock = threading.Lock()
        self._plan = ServingPlan(
            run, configure, overload, opener or _in_a_child(time_limit_s), lambda: self._under_way, time_limit_s
        )
        self._now = self._plan.open()
        self._tried: Release | None = None
        self._try_at, self._pause_s = 0.0, AGAIN_S
        self._changing = threading.RLock()
        """Held by whoever puts another Serving in the place of the present one."""
        self._items = ItemWriter(run, lambda: self._now.catalog, self._show_changes, alone=self._changing)
        self._leaving: list[tuple[float, Serving]] = []
        self._settled = time.monotonic()
        duties = {
            "looking for what is new": self.refresh,
            "starting the reranker": self._revive,
            "closing what was served before": self._part,
            "writing the ledger": self._settle_at_times,
            "showing what there is to see": self._show,
        }
        self._keeper = Keeper(duties, pause_s=LOOK_S)

    @property
    def serving(self) -> Serving:
        """What new requests are answered from."""
        return self._now

    def recommend(self, ask: Ask) -> Served:
        """An answer; where the reranker fails or is too busy, in retrieval order, and it says so.

        Raises:
            BadInput: when not exactly one of user, history and query is given, or a number is out of range.
            FilterFault: when the condition has a fault, or nothing meets it.
        """
        serving = self._now
        started = time.perf_counter()
        with self._counted():
            history, vector, known = self._asked(serving, ask)
            named, dataset = ask.user_id, serving.recommender.dataset
            disliked = None if named is None else disliked_by(named, dataset, self.events)
            excluded, strangers = _rows(serving, ask.exclude_items)
            looked_up = time.perf_counter()
            answer = serving.recommender.recommend(
                history,
                k=ask.limit,
                depth=ask.depth,
                rerank=ask.rerank,
                budget=self._in_time(ask.budget, since=started),
                query_vector=vector,
                about=known.about,
                disliked=disliked,
                where=None if ask.where is None else serving.conditions.mask(ask.where),
                exclude=excluded if len(excluded) else None,
                exclude_known=ask.exclude_known,
                explained=ask.explain,
            )
        self._spend(answer.cost.spent)
        unknown = tuple(dict.fromkeys((*known.unknown_items, *strangers)))
        return Served(answer, serving, unknown, known.found, (looked_up - started) * 1000)

    def rerank(self, history: Sequence[str], documents: Sequence[str]) -> RerankResult:
        """Scores for any texts in the light of a history of texts: all, or the first that the time limit lets be read.

        Raises:
            MissingStep: when the release has no reranker.
            Crowded: when it is too busy for all of them, or the day's tokens are spent.
            RerankerFailure: when it gave no answer, or none that makes sense.
        """
        serving = self._now
        second = serving.recommender.second
        if second is None:
            raise MissingStep(
                f"this release has no reranker: train one with 'python cli.py train-reranker --run {self.run.root}'"
            )
        started = time.perf_counter()
        with self._counted(), serving.load.reading(len(documents)) as reading:
            if reading.depth < len(documents):
                raise Crowded(f"the reranker is too busy for {len(documents):,} documents: come back, or send fewer")
            max_ms = self._in_time(Budget(), since=started).max_ms
            found = _scored(second, RerankRequest(tuple(history), tuple(documents), max_ms=max_ms))
            reading.succeeded = True
        tokens, cached = sum(found.prompt_tokens), sum(found.cached_tokens)
        spent_ms = (time.perf_counter() - started) * 1000
        read = len(found.scores[0])
        self._spend(Spent(1, int(read > 0), read, tokens, cached, rerank_ms=spent_ms))
        if found.cuts[0][1] is Cap.DAY:
            raise Crowded("the tokens of the day (recommend.max_tokens_per_day) are spent")
        return found

    def texts_of(self, user_id: str) -> tuple[list[str], bool]:
        """The texts of what a user took, oldest first, and whether log or events have the user."""
        recommender = self._now.recommender
        known = known_of(user_id, recommender.dataset, self.events)
        return [recommender.texts[row] for row in known.item_rows.tolist()], known.found

    def similar(self, item_id: str, limit: int | None = None) -> tuple[Serving, list[tuple[int, float]]]:
        """(item_row, cosine of the texts) of the items most alike; without a limit SIMILAR, or all others.

        Raises:
            UnknownId: when the catalog has no such item.
            BadInput: when `limit` is larger than the catalog.
        """
        serving = self._now
        recommender = serving.recommender
        limit = recommender.checked_k(limit, unless=SIMILAR)
        row = int(recommender.item_rows([item_id])[0])
        itself = Histories.of([[row]])
        found = recommender.retriever.candidates_for_texts(recommender.retriever.text[row][None, :], itself, limit)
        there = found.present[0]
        return serving, list(zip(found.item_rows[0][there].tolist(), found.score[0][there].tolist(), strict=True))

    def forget(self, user_id: str) -> Forgotten:
        """Deletes what a user did, durably: events, the use of the log's history, what the reranker remembers.

        The published data set and models keep what they were made from until the next training, which leaves it out.
        """
        dataset = self._now.recommender.dataset
        logged = known_of(user_id, dataset, self.events).logged
        events = self.events.forget(user_id)
        # Requests that began before a swap are still answered by the reranker of then.
        served = [self._now, *(old for _, old in self._leaving)]
        for child in {id(one.child): one.child for one in served if one.child is not None}.values():
            child.forget()
        return Forgotten(events, logged, dataset.holds(user_id))

    def users(self, search: str, limit: int) -> list[str]:
        """Users of the log whose id holds `search`, those that begin with it first; not who asked to be forgotten."""
        serving, marks = self._now, self.events.marks()
        dataset = serving.recommender.dataset
        found = serving.directory.users(search, limit + len(marks))
        # Who came back since is known again.
        shown = (
            user_id
            for user_id in found
            if self.events.hashed(user_id) not in marks or known_of(user_id, dataset, self.events).found
        )
        return list(islice(shown, limit))

    def store(self, events: Sequence[Event]) -> tuple[Stored, tuple[str, ...]]:
        """Stores events, durably; returns with them the ids of items that the catalog does not have, or not yet."""
        vocabulary = self._now.recommender.catalog.vocabulary
        unknown = dict.fromkeys(event.item_id for event in events if event.item_id not in vocabulary)
        return self.events.add(events), tuple(unknown)

    def put(self, item_id: str, values: Mapping[str, Any]) -> ItemState:
        """Adds an item or changes it; on disk and shown when this returns. Errors as `ItemWriter.write`."""
        return self._items.write(ItemChange(item_id, values))

    def remove(self, item_id: str) -> ItemState:
        """Takes an item out of every answer; on disk and so shown when this returns. Errors as `ItemWriter.write`."""
        return self._items.write(ItemChange(item_id, None))

    def faults(self) -> list[str]:
        """Why it cannot answer; empty where it can."""
        found = [] if self._keeper.is_alive else ["it has ended: nothing new is seen any more"]
        trouble = self.events.trouble()
        return [*found, f"events cannot be read: {trouble}"] if trouble else found

    def troubles(self) -> list[str]:
        """Why answers may be less than they could be; empty where all is well."""
        found = [f"a newer release is refused: {self.refused}"] if self.refused else []
        unread = self._now.wishes.trouble
        found += [f"wishes and new items cannot be read: {unread}"] if unread else []
        found += self._keeper.troubles
        if not self._now.reranker_is_ready:
            trouble = self._now.child.trouble if self._now.child is not None else ""
            found.append("the reranker is being started; answers are in retrieval order")
            found += [f"the reranker cannot be started: {trouble}"] if trouble else []
        return found

    def refresh(self) -> bool:
        """Serves what has been published or changed since, if it can; says whether it does now.

        Requests under way finish with what they began with.
        """
        with self._changing:
            try:
                release = self.run.release()
                if release.models == self._now.release.models:
                    self._tried, self.refused = None, ""
                    return self._show_changes() if self._now.catalog.keep_up() else False
            except (TandemError, OSError) as error:
                self.refused, self._tried = str(error), None
                return False
            if release.models != self._tried:
                self._tried, self._try_at, self._pause_s = release.models, 0.0, AGAIN_S
            return self._swap() if time.monotonic() >= self._try_at else False

    def _show_changes(self) -> bool:
        self._now = self._now.changed()
        return True

    def _swap(self) -> bool:
        try:
            new = self._plan.open(before=self._now)
        except Exception as error:  # whatever it is, the old one goes on
            self.refused = str(error) or type(error).__name__
            _LOG.error("a newer release is refused: %s", self.refused, exc_info=not isinstance(error, TandemError))
            # What it lacked may be there later, and until it is served no item can be changed.
            self._try_at, self._pause_s = time.monotonic() + self._pause_s, min(2 * self._pause_s, AT_LAST_S)
            return False
        self.refused = ""
        old, self._now = self._now, new
        self.swaps += 1
        self._leaving.append((time.monotonic() + 2 * self._plan.timeout_s, old))
        return True

    def close(self) -> None:
        """Ends the child, and puts what was spent into the ledger."""
        self._keeper.close()
        self._settle()
        for serving in (*(old for _, old in self._leaving), self._now):
            if serving.child is not None:
                serving.child.close()
        self.events.close()

    def _asked(self, serving: Serving, ask: Ask) -> tuple[Rows, Scores | None, Known]:
        if sum(one is not None for one in (ask.user_id, ask.history, ask.query)) != 1:
            raise BadInput("give exactly one of user_id, history and query")
        if ask.user_id is not None:
            known = known_of(ask.user_id, serving.recommender.dataset, self.events)
            return known.item_rows, None, known
        if ask.history is not None:
            rows, strangers = _rows(serving, ask.history)
            return rows, None, Known(rows, strangers)
        return NOBODY, serving.wishes.vector(ask.query or "", serving.recommender), Known(NOBODY)

    def _in_time(self, budget: Budget, *, since: float) -> Budget:
        """The budget within what is left of the time limit, so that the reranker reads less rather than too long."""
        left_ms = max(0.0, 1000 * (PLANNED * self._plan.timeout_s + since - time.perf_counter()))
        return budget.model_copy(update={"max_ms": left_ms if budget.max_ms is None else min(budget.max_ms, left_ms)})

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def _spend(self, spent: Spent) -> None:
        with self._lock:
            self._spent += spent

    def _show(self) -> None:
        for watcher in self.watchers:
            watcher()

    def _revive(self) -> None:
        if self._now.child is not None:
            self._now.child.revive()

    def _part(self) -> None:
        left = [old for moment, old in self._leaving if moment < time.monotonic()]
        self._leaving = [(moment, old) for moment, old in self._leaving if old not in left]
        for old in left:
            if old.child is not None and old.child is not self._now.child:
                old.child.close()

    def _settle_at_times(self) -> None:
        if time.monotonic() - self._settled > SETTLE_S:
            self._settle()
            self._settled = time.monotonic()

    def _settle(self) -> None:
        """Puts what was spent into the ledger; where that fails it is tried again with what comes next."""
        with self._lock:
            spent, self._spent = self._spent, Spent()
        if spent == Spent():
            return
        try:
            add_to_ledger(self.run.root / LEDGER, spent)
        except (TandemError, OSError):
            _LOG.exception("the ledger cannot be written")
            self._spend(spent)


def _scored(second: SecondStage, request: RerankRequest) -> RerankResult:
    try:
        found = second.within_the_day([request])
    except (Crowded, RerankerFailure):
        raise
    except Exception as error:
        raise RerankerFailure(f"the reranker failed ({type(error).__name__}: {error})") from error
    if not np.isfinite(found.scores[0]).all():
        raise RerankerFailure("the reranker's scores are not finite")
    if request.candidates and not len(found.scores[0]) and found.cuts[0][1] is not Cap.DAY:
        raise RerankerFailure("not even two documents can be read within the time limit")
    return found


def _rows(serving: Serving, item_ids: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
    """Rows of the items that there are, and the ids of the others."""
    vocabulary = serving.recommender.catalog.vocabulary
    strangers = tuple(dict.fromkeys(item_id for item_id in item_ids if item_id not in vocabulary))
    known = [item_id for item_id in item_ids if item_id in vocabulary] if strangers else list(item_ids)
    return vocabulary.rows(known), strangers


def _in_a_child(time_limit_s: float) -> Opener:
    return lambda run, key, config: supervised(run, key, config.precision, timeout_s=time_limit_s)
