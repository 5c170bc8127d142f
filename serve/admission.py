"""How many requests are worked on at once, how many wait, and who is sent away."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from recommend.threads import compute_in, compute_products_in
from serve.limits import ServeConfig

T = TypeVar("T")
MEMORY = 0.05
"""Weight of the last request in the running mean of their times."""
HARD_LIMIT = 5
"""Times the time limit after which a request is given up although it is being worked on."""


class Busy(Exception):
    """Too many requests; come back after `retry_s` seconds."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"too many requests at once: come back in {retry_s} s")
        self.retry_s = retry_s


class Slow(Exception):
    """A request that is taking far longer than the time limit; it was given up."""


class Admission:
    """Runs blocking work in threads, off the event loop; to be used from that loop alone.

    Args:
        limits: how many at once, how many waiting, for how long.
    """

    def __init__(self, limits: ServeConfig) -> None:
        self._limits = limits
        compute_products_in(limits.threads_of_a_request)
        self._threads = ThreadPoolExecutor(
            limits.concurrency,
            thread_name_prefix="request",
            initializer=compute_in,
            initargs=(limits.threads_of_a_request,),
        )
        self._places = asyncio.Semaphore(limits.concurrency)
        self.inside = 0
        self._mean_s = 0.0

    async def work(self, function: Callable[[], T]) -> T:
        """What the function returns, computed in a thread.

        Raises:
            Busy: when the queue is full, or would be left too late.
            Slow: when it takes several times the time limit.
        """
        limit_s = self._limits.time_limit_ms / 1000
        waiting = max(0, self.inside - self._limits.concurrency)
        expected_s = waiting * self._mean_s / self._limits.concurrency
        if (waiting >= self._limits.queue and self._places.locked()) or expected_s > limit_s / 2:
            raise Busy(max(1, math.ceil(expected_s)))
        self.inside += 1
        try:
            await self._place(limit_s)
            return await self._run(function, limit_s)
        finally:
            self.inside -= 1

    async def _place(self, limit_s: float) -> None:
        if not self._places.locked():
            await self._places.acquire()  # at once, and without a clock that would have to be set
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise Busy(max(1, math.ceil(limit_s))) from error

    async def _run(self, function: Callable[[], T], limit_s: float) -> T:
        started = time.perf_counter()
        under_way = asyncio.get_running_loop().run_in_executor(self._threads, function)
        # The place is taken until the thread is free, also when nobody waits for it any more.
        under_way.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(HARD_LIMIT * limit_s):
                found = await asyncio.shield(under_way)
        except TimeoutError as error:
            under_way.add_done_callback(lambda late: late.exception())
            raise Slow(f"no answer within {HARD_LIMIT * limit_s:g} s") from error
        self._mean_s += MEMORY * (time.perf_counter() - started - self._mean_s)
        return found

    def close(self) -> None:
        """Lets work under way end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
