"""A reranker in a process of its own: a hang, a crash or a lack of memory there ends the child, not the caller."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from recommend.processes import fresh_context, when_parent_ends
from recommend.release import load_model
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.precision import Precision, at_precision
from store.artifacts import Run

READY, ANSWER, FAULT = "ready", "answer", "fault"
GRACE_S = 5.0
"""For a child that was asked to end."""
AGAIN_S, AT_LAST_S = 2.0, 60.0
"""Between two attempts to start a child whose model cannot be loaded: twice as long after each."""
_LOG = logging.getLogger(__name__)


class RerankerFailure(RuntimeError):
    """The child gave no answer: it is being started, it took too long, or it died. A new one is on its way."""


class SupervisedReranker:
    """Asks a child process that holds the model; see `Reranker`.

    One request is under way at a time; further callers wait, within their own time limit. A child that exceeds the
    limit is killed. While a new one loads its model every call fails at once, so that callers go on without it.

    Args:
        load: makes the reranker, in the child; it must be picklable, as a function of a module is.
        timeout_s: longest wait for an answer.
        start_s: longest wait for the model to be loaded.
        name: of the reranker, for answers.
    """

    def __init__(
        self, load: Callable[[], Reranker], *, timeout_s: float, start_s: float = 300.0, name: str = "supervised"
    ) -> None:
        self.name = name
        self.timeout_s, self.start_s = timeout_s, start_s
        self.failures: Counter[str] = Counter()
        self.starts = 0
        self._load = load
        self.trouble = ""
        """Why the last child could not load its model; empty where it could."""
        self._context = fresh_context()
        self._lock = threading.Lock()
        self._child: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._ready = threading.Event()
        self._pause_s = AGAIN_S
        self._closed = False
        self._start()

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`.

        Raises:
            RerankerFailure: when no answer came in time.
            RuntimeError: with what the reranker raised, its type and message.
        """
        result: RerankResult = self._ask("score", list(requests))
        return result

    def calibrate(self) -> None:
        """See `Reranker`; every child has done it before it is ready, also one that takes another's place."""

    def forget(self) -> None:
        """Drops the histories that the reranker remembers; a child that is being started has none."""
        # For its turn, however long: to be busy is no reason to load the model anew.
        with self._lock:
            if self._ready.is_set() and self._pipe is not None:
                # One that gives no answer has been replaced by one that remembers nothing.
                with suppress(RerankerFailure):
                    self._answer("forget", (), time.monotonic() + self.timeout_s)

    def revive(self) -> None:
        """Starts a child where the last one has ended without being asked; to be called from time to time."""
        # Whoever is asking meanwhile finds out by itself.
        if self._lock.acquire(blocking=False):
            try:
                self._revive()
            finally:
                self._lock.release()

    def wait_until_ready(self) -> None:
        """Waits until the child holds its model.

        Raises:
            RerankerFailure: when it does not within `start_s`.
        """
        if not self._ready.wait(self.start_s):
            self._fail("start", f"its model was not loaded within {self.start_s:g} s")

    @property
    def is_ready(self) -> bool:
        """Whether a call would be answered."""
        return self._ready.is_set()

    def close(self) -> None:
        """Ends the child."""
        self._closed = True
        self._end(GRACE_S)

    def __enter__(self) -> "SupervisedReranker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + self.timeout_s
        if not self._lock.acquire(timeout=self.timeout_s):
            self._fail("busy", f"others kept it busy for {self.timeout_s:g} s")
        try:
            if not self._ready.is_set() or self._pipe is None:
                self._revive()
                self._fail("starting", "it is being started")
            return self._answer(method, arguments, deadline)
        finally:
            self._lock.release()

    def _answer(self, method: str, arguments: tuple[Any, ...], deadline: float) -> Any:
        assert self._pipe is not None
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self._restart()
                self._fail("timeout", f"no answer within {self.timeout_s:g} s; it is started anew")
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._child.exitcode if self._child is not None else None
            self._restart()
            self._fail("died", f"its process ended ({code}); it is started anew", error)
        if kind == FAULT:
            self.failures["raised"] += 1
            raise RuntimeError(value)
        return value

    def _fail(self, kind: str, words: str, cause: BaseException | None = None) -> None:
        self.failures[kind] += 1
        raise RerankerFailure(f"the reranker gave no answer: {words}") from cause

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        child = self._context.Process(target=_serve, args=(theirs, self._load), daemon=True, name="reranker")
        child.start()
        theirs.close()
        self.starts += 1
        self._started_at = time.monotonic()
        self._child, self._pipe = child, ours
        threading.Thread(target=self._await_ready, args=(ours, child), daemon=True, name="reranker-start").start()

    def _await_ready(self, pipe: Connection, child: BaseProcess) -> None:
        """Opens the way to the child once it says that it is ready; one that is not in time is ended."""
        try:
            kind, words = pipe.recv() if pipe.poll(self.start_s) else (FAULT, f"not loaded within {self.start_s:g} s")
        except (EOFError, OSError):
            kind, words = FAULT, "its process ended"
        if self._child is not child:
            return
        if kind == READY:
            self.trouble, self._pause_s = "", AGAIN_S
            self._ready.set()
            return
        self.failures["start"] += 1
        self.trouble = words
        _LOG.error("the reranker cannot be started: %s", words)
        child.kill()

    def _revive(self) -> None:
        """Starts a child where the last one has ended, at once or after a pause: what it lacked may be back."""
        given_up = self._child is not None and not self._child.is_alive()
        if given_up and not self._closed and time.monotonic() - self._started_at > self._pause_s:
            if not self._ready.is_set():
                self._pause_s = min(2 * self._pause_s, AT_LAST_S)
            self._restart()

    def _restart(self) -> None:
        self._end(0.0)
        if not self._closed:
            self._start()

    def _end(self, grace_s: float) -> None:
        self._ready.clear()
        child, pipe = self._child, self._pipe
        self._child = self._pipe = None
        if pipe is not None:
            pipe.close()  # a child that waits for work ends by itself
        if child is not None:
            child.join(grace_s)
            if child.is_alive():
                child.kill()
                child.join()


def supervised(run: Run, key: str, precision: Precision, *, timeout_s: float) -> SupervisedReranker:
    """The reranker of that key, in a child."""
    return SupervisedReranker(_Loader(run.root, key, precision), timeout_s=timeout_s)


class _Loader:
    """What the child loads."""

    def __init__(self, root: Path, key: str, precision: Precision) -> None:
        self.root, self.key, self.precision = root, key, precision

    def __call__(self) -> Reranker:
        return at_precision(load_model(Run(self.root), self.key), self.precision)


def _serve(pipe: Connection, load: Callable[[], Reranker]) -> None:
    """The child: loads, then answers until nobody asks any more."""
    # Ctrl-C is for the parent, which ends its child in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A model that is being loaded for a server that was killed would hold up the one that takes its place.
    when_parent_ends(lambda: os._exit(1))
    _offer_to_be_killed()
    # One that closes with an answer unread resets the connection.
    with suppress(EOFError, ConnectionError):
        _answer_all(pipe, load)


def _answer_all(pipe: Connection, load: Callable[[], Reranker]) -> None:
    try:
        reranker = load()
        reranker.calibrate()
    except Exception as error:  # whatever it is, the parent has to be told
        pipe.send((FAULT, f"{type(error).__name__}: {error}"))
        return
    pipe.send((READY, None))
    while True:
        method, arguments = pipe.recv()
        try:
            pipe.send((ANSWER, getattr(reranker, method)(*arguments)))
        except Exception as error:  # whatever it is, the caller has to be told and the child goes on
            pipe.send((FAULT, f"{type(error).__name__}: {error}"))


def _offer_to_be_killed() -> None:
    """Where memory runs out the system ends this process, which can be replaced, and not its parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
