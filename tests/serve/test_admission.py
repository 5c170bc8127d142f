"""So many at once, so many waiting, the others are told when to come back."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from index.layout import FAISS
from serve.admission import Admission, Busy, Slow
from serve.limits import ServeConfig


def admission(**limits: int) -> Admission:
    return Admission(ServeConfig(**limits))


def test_more_than_places_and_queue_are_refused_and_the_rest_is_answered():
    async def scene() -> None:
        door, gate = admission(concurrency=2, queue=3, time_limit_ms=60_000), threading.Event()
        working = [asyncio.create_task(door.work(lambda n=n: gate.wait(60) and n)) for n in range(5)]
        await asyncio.sleep(0.1)
        assert door.inside == 5
        with pytest.raises(Busy, match="come back in 1 s") as refused:
            await door.work(lambda: 0)
        assert refused.value.retry_s == 1
        gate.set()
        assert await asyncio.gather(*working) == [True and n for n in range(5)]
        assert door.inside == 0
        assert await door.work(lambda: "again") == "again"

    asyncio.run(scene())


def test_who_would_wait_too_long_is_refused_at_once():
    async def scene() -> None:
        door, gate = admission(concurrency=1, queue=50, time_limit_ms=1000), threading.Event()
        door._mean_s = 0.3
        working = [asyncio.create_task(door.work(lambda: gate.wait(60))) for _ in range(3)]
        await asyncio.sleep(0.05)
        # Two wait 0.6 s: more than half of the limit.
        with pytest.raises(Busy):
            await door.work(lambda: 0)
        gate.set()
        await asyncio.gather(*working)

    asyncio.run(scene())


def test_who_has_waited_too_long_is_refused():
    async def scene() -> None:
        door, gate = admission(concurrency=1, queue=5, time_limit_ms=100), threading.Event()
        first = asyncio.create_task(door.work(lambda: gate.wait(60)))
        await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await door.work(lambda: 0)
        gate.set()
        await first

    asyncio.run(scene())


def test_work_that_does_not_end_is_given_up_and_keeps_its_place():
    async def scene() -> None:
        door, gate = admission(concurrency=1, queue=5, time_limit_ms=20), threading.Event()
        with pytest.raises(Slow):
            await door.work(lambda: gate.wait(60))
        with pytest.raises(Busy):
            await door.work(lambda: 0)
        gate.set()
        await asyncio.sleep(0.2)
        assert await door.work(lambda: 1) == 1

    asyncio.run(scene())


def test_what_the_work_raises_comes_out():
    async def scene() -> None:
        door = admission()
        with pytest.raises(ZeroDivisionError):
            await door.work(lambda: 1 / 0)
        assert door.inside == 0

    asyncio.run(scene())


def test_a_request_is_computed_in_as_many_threads_as_allowed():
    async def threads(**limits: int) -> tuple[int, int]:
        return await admission(**limits).work(lambda: (torch.get_num_threads(), FAISS.omp_get_max_threads()))

    assert asyncio.run(threads(threads=3)) == (3, 3)
    few = max(1, (os.cpu_count() or 1) // 2)
    assert asyncio.run(threads()) == (few, few)


def test_a_process_that_serves_has_no_threads_that_wait_for_the_next_product_of_a_request() -> None:
    code = (
        "import json, faiss, scipy.linalg\n"
        "from threadpoolctl import threadpool_info\n"
        "from serve.admission import Admission\n"
        "from serve.limits import ServeConfig\n"
        "Admission(ServeConfig(threads=1))\n"
        "print(json.dumps([pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(json.loads(done.stdout)) == {1}
