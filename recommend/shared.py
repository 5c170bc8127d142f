"""One reranker for several processes: a hub that has it in a child, and what stands for it in the others."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from secrets import token_bytes
from typing import Any

from recommend.batched import BatchedReranker
from recommend.microbatch import Crowded
from recommend.supervised import RerankerFailure, SupervisedReranker
from rerank.base import RerankRequest, RerankResult

KEPT = 2
"""Rerankers that stay: of the present release, and of the one before while others change over."""
STATE_S, STATE_WAIT_S = 0.2, 2.0
"""How long the state of the reranker is taken to last, and how long to wait for it."""
PATIENCE = 4
"""How long an answer is waited for, in time limits: the hub's own waits, for a turn and for the child, end before."""
TEND_S = 0.5
"""Between two looks at whether every child lives."""
STATE, CALIBRATE, FORGET, SCORE = "state", "calibrate", "forget", "score"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a hub is; only processes that are given the secret may ask."""

    path: str
    secret: bytes


class RerankerHub:
    """Answers other processes, each of their threads over a connection of its own; their calls are put together.

    Args:
        open_child: starts the reranker of a key.
        batch: callers whose requests share one call.
        window_ms: how long a call is held back for others that are under way.
        timeout_s: longest wait for the turn.
    """

    def __init__(
        self, open_child: Callable[[str], SupervisedReranker], *, batch: int, window_ms: float, timeout_s: float
    ) -> None:
        self._open_child = open_child
        self._batch, self._window_ms, self._timeout_s = batch, window_ms, timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-")
        self.address = Address(str(Path(self._folder.name) / "hub"), token_bytes(32))
        self._listener = Listener(self.address.path, "AF_UNIX", backlog=128, authkey=self.address.secret)
        self._children: dict[str, tuple[SupervisedReranker, BatchedReranker]] = {}
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._scoring = 0
        self._ends = threading.Event()
        threading.Thread(target=self._accept, daemon=True, name="hub").start()
        threading.Thread(target=self._tend, daemon=True, name="hub-tender").start()

    def close(self) -> None:
        """Ends every child."""
        self._ends.set()
        self._listener.close()
        with self._lock:
            for child, _ in self._children.values():
                child.close()
            self._children.clear()
        self._folder.cleanup()

    def _tend(self) -> None:
        while not self._ends.wait(TEND_S):
            for child in self._present():
                try:
                    child.revive()
                except Exception:  # the other children need it, too, and this one the next time
                    _LOG.exception("a reranker cannot be started")

    def _present(self) -> list[SupervisedReranker]:
        with self._lock:
            return [child for child, _ in self._children.values()]

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return  # closed
            except Exception:
                _LOG.exception("a stranger knocked")
                continue
            threading.Thread(target=self._answer_all, args=(connection,), daemon=True, name="hub-caller").start()

    def _answer_all(self, connection: Connection) -> None:
        while True:
            try:
                key, method, arguments = connection.recv()
            except (EOFError, OSError):
                return
            try:
                answer: Any = self._answer(key, method, arguments)
            except Crowded as error:
                answer = error
            except Exception as error:  # whatever it is, the caller has to be told
                answer = RerankerFailure(f"{type(error).__name__}: {error}")
            try:
                connection.send(answer)
            except OSError:
                return

    def _answer(self, key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == FORGET:
            # The one of the release before remembers histories, too.
            for child in self._present():
                child.forget()
            return None
        child, batched = self._child(key)
        if method == STATE:
            return child.is_ready, child.starts, child.trouble
        if method == SCORE:
            self._count(1)
            try:
                return batched.score(*arguments)
            finally:
                self._count(-1)
        return getattr(child, method)(*arguments)

    def _count(self, more: int) -> None:
        # Adding to a number is two steps, between which another thread may add.
        with self._counting:
            self._scoring += more

    def _child(self, key: str) -> tuple[SupervisedReranker, BatchedReranker]:
        with self._lock:
            if key not in self._children:
                child = self._open_child(key)
                self._children[key] = (
                    child,
                    BatchedReranker(
                        child,
                        most=self._batch,
                        window_ms=self._window_ms,
                        expected=lambda: self._scoring,
                        timeout_s=self._timeout_s,
                    ),
                )
                for old in list(self._children)[:-KEPT]:
                    self._children.pop(old)[0].close()
            return self._children[key]


class SharedReranker:
    """Meets `Reranker` by asking a hub.

    Args:
        address: of the hub.
        key: of the reranker.
        timeout_s: the time limit of the hub and of its child.
    """

    def __init__(self, address: Address, key: str, *, timeout_s: float) -> None:
        self.name = "shared"
        self._address, self._key, self._timeout_s = address, key, timeout_s
        self._threads = threading.local()
        self._greeting = threading.Lock()
        self._state = (False, 0, "")
        self._looked_at = float("-inf")
        self._silent = False
        self._look()

    @property
    def is_ready(self) -> bool:
        """See SupervisedReranker; what it was when last asked, at most STATE_S ago."""
        return self._look()[0]

    @property
    def starts(self) -> int:
        """See SupervisedReranker."""
        return self._look()[1]

    @property
    def trouble(self) -> str:
        """See SupervisedReranker."""
        return self._look()[2]

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`.

        Raises:
            Crowded: when others were served for too long.
            RerankerFailure: when the hub or its child gave no answer.
        """
        # A hub that does not answer is not asked again by everybody; one that does may know better than a moment ago.
        ready, _, trouble = self._look()
        if not ready and not self._silent:
            ready, _, trouble = self._look(anew=True)
        if not ready:
            raise RerankerFailure(trouble or "the reranker gave no answer: it is being started")
        found: RerankResult = self._ask(SCORE, list(requests))
        return found

    def calibrate(self) -> None:
        """See `Reranker`."""
        self._ask(CALIBRATE)

    def revive(self) -> None:
        """Leaves it to the hub."""

    def forget(self) -> None:
        """See SupervisedReranker."""
        self._ask(FORGET)

    def close(self) -> None:
        """Leaves the child to the hub, which others ask, too."""

    def _look(self, *, anew: bool = False) -> tuple[bool, int, str]:
        if anew or time.monotonic() - self._looked_at > STATE_S:
            self._looked_at = time.monotonic()
            try:
                self._state = self._ask(STATE, within_s=STATE_WAIT_S)
                self._silent = False
            except RerankerFailure as error:
                self._state = (False, self._state[1], str(error))
                self._silent = True
        return self._state

    def _ask(self, method: str, *arguments: Any, within_s: float | None = None) -> Any:
        within_s = PATIENCE * self._timeout_s if within_s is None else within_s
        try:
            connection = self._connection()
            connection.send((self._key, method, arguments))
            if not connection.poll(within_s):
                connection.close()  # what comes later would be taken for the answer to something else
                raise TimeoutError(f"it says nothing for {within_s:g} s")
            answer = connection.recv()
        except (EOFError, OSError) as error:
            self._threads.connection = None
            raise RerankerFailure(f"the reranker gave no answer: its hub is away ({error})") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._threads, "connection", None)
        if found is None:
            found = self._threads.connection = self._connected()
        return found

    def _connected(self) -> Connection:
        """A connection of its own; it is made in a thread that can be left behind, since a greeting has no time limit.

        One thread at a time: the first that a hub which stands still has not greeted keeps the others waiting.
        """
        made: Future[Connection] = Future()

        def connect() -> None:
            try:
                made.set_result(Client(self._address.path, "AF_UNIX", authkey=self._address.secret))
            except Exception as error:
                made.set_exception(error)
            finally:
                self._greeting.release()

        if not self._greeting.acquire(timeout=STATE_WAIT_S):
            raise TimeoutError("it has not greeted others yet")
        threading.Thread(target=connect, daemon=True, name="hub-greeting").start()
        try:
            return made.result(STATE_WAIT_S)
        except TimeoutError as error:
            made.add_done_callback(lambda late: None if late.exception() else late.result().close())
            raise TimeoutError(f"it has not greeted for {STATE_WAIT_S:g} s") from error
