"""Calls of several threads put together into one, without a thread of its own and without cost where there is one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Crowded(RuntimeError):
    """The caller's time was up before its turn came; nothing was computed for it."""


@dataclass(eq=False)
class _Slot(Generic[Q, A]):
    question: Q
    answer: list[A] = field(default_factory=list)
    error: BaseException | None = None
    done: bool = False


class MicroBatch(Generic[Q, A]):
    """Answers questions through a function that takes many at once.

    Whoever finds nobody at work answers all who wait, itself among them; the others wait for their answer. So
    batches form by themselves while the function is busy, and a lone caller pays for a lock.

    Args:
        answer: questions → as many answers, in their order. Called by one thread at a time.
        most: questions of one call.
        window_ms: how long a call may be held back for others to join it.
        expected: how many callers there may be; who is alone does not wait for others.
        kind: of a question; one call holds questions of one kind, in the order in which they came.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        *,
        most: int,
        window_ms: float = 0.0,
        expected: Callable[[], int] = lambda: 1,
        kind: Callable[[Q], object] = lambda question: None,
    ) -> None:
        self._answer, self._most, self._kind = answer, most, kind
        self._window_s, self._expected = window_ms / 1000, expected
        self._waiting: deque[_Slot[Q, A]] = deque()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __call__(self, question: Q, *, timeout_s: float = -1) -> A:
        """The answer to one question.

        Args:
            timeout_s: longest wait for the turn; negative: as long as it takes.

        Raises:
            Crowded: when the turn did not come in time.
            Exception: what the function raised; of a batch that failed each question is asked once more, alone.
        """
        slot: _Slot[Q, A] = _Slot(question)
        self._waiting.append(slot)
        if not self._turn.acquire(timeout=timeout_s):
            try:
                self._waiting.remove(slot)
            except ValueError:
                # Somebody has just taken it along: its answer is under way.
                pass
            else:
                raise Crowded(f"others were served for {timeout_s:g} s")
            self._turn.acquire()
        try:
            while not slot.done:
                self._serve()
        finally:
            self._turn.release()
        if slot.error is not None:
            raise slot.error
        return slot.answer[0]

    def _serve(self) -> None:
        self._gather()
        batch = self._next()
        try:
            if len(batch) > 1 and self._served_together(batch):
                return
            # One bad question must not spoil the others': each is asked alone.
            for slot in batch:
                self._serve_alone(slot)
        finally:
            for slot in batch:
                slot.done = True

    def _next(self) -> list[_Slot[Q, A]]:
        """Those of one kind at the head of the queue, as many as one call may hold."""
        batch: list[_Slot[Q, A]] = []
        while self._waiting and len(batch) < self._most:
            slot = self._waiting.popleft()
            if batch and self._kind(slot.question) != self._kind(batch[0].question):
                self._waiting.appendleft(slot)
                break
            batch.append(slot)
        return batch

    def _served_together(self, batch: Sequence[_Slot[Q, A]]) -> bool:
        try:
            answers = self._answer([slot.question for slot in batch])
        except Exception:  # whatever it is, it is met again alone
            return False
        for slot, answer in zip(batch, answers, strict=True):
            slot.answer.append(answer)
        return True

    def _serve_alone(self, slot: _Slot[Q, A]) -> None:
        try:
            slot.answer.extend(self._answer([slot.question]))
        except BaseException as error:
            slot.error = error  # its caller's, to be raised in its thread
            if not isinstance(error, Exception):
                raise

    def _gather(self) -> None:
        if not self._window_s:
            return
        until = time.monotonic() + self._window_s
        while len(self._waiting) < min(self._most, self._expected()) and time.monotonic() < until:
            time.sleep(self._window_s / 8)
