"""Fewer candidates before answers get slower, then none, and all of them again when nobody waits."""

import time
from contextlib import ExitStack

import pytest

from recommend.overload import MEMORY, ROOM_SHARE, OverloadConfig, RerankLoad


def load(*, target_ms: float = 400.0, ms_per_candidate: float = 5.0) -> RerankLoad:
    made = RerankLoad(OverloadConfig(rerank_target_ms=target_ms))
    made.ms_per_candidate = ms_per_candidate
    return made


def fail_late() -> None:
    time.sleep(0.05)
    raise RuntimeError


def test_who_is_alone_gets_all_however_slow_the_model_is():
    slow = load(ms_per_candidate=1000.0)
    with slow.reading(50) as reading:
        assert reading.depth == 50
        assert reading.words == ""


def test_depth_follows_the_room_that_is_left_and_ends_at_none():
    busy = load()
    granted = []
    with ExitStack() as stack:
        for _ in range(12):
            granted.append(stack.enter_context(busy.reading(20)).depth)
        # Waiting candidates take 5 ms each of 400 ms, and a request half of what is left.
        expected, waiting = [], 0
        for _ in range(12):
            room = int(ROOM_SHARE * (400 - waiting * 5) / 5)
            depth = 20 if not waiting or room >= 20 else room if room >= 2 else 0
            expected.append(depth)
            waiting += depth
        assert granted == expected
        assert granted[0] == 20
        assert granted == sorted(granted, reverse=True)
        assert 0 < granted[3] < 20
        assert granted[-1] == 0
        assert busy.waiting * 5 <= 400
    assert busy.waiting == 0


def test_the_answer_says_what_it_lost():
    busy = load()
    with busy.reading(60), busy.reading(40) as fewer, busy.reading(60), busy.reading(60):
        assert fewer.words == f"overload: {int(0.5 * (400 - 300) / 5)} of 40 candidates reranked"
    busy = load(target_ms=100)
    with busy.reading(20), busy.reading(20) as none:
        assert none.words == "overload: not reranked"


def test_the_pace_is_learnt_from_what_succeeded():
    fresh = load(ms_per_candidate=10.0)
    with fresh.reading(10):
        pass
    assert fresh.ms_per_candidate == 10.0
    with fresh.reading(10) as reading:
        reading.succeeded = True
    assert fresh.ms_per_candidate == pytest.approx(10 * (1 - MEMORY), abs=0.5)  # the block took next to no time


def test_a_reading_that_failed_late_teaches_that_the_model_is_slow():
    busy = load(target_ms=20.0, ms_per_candidate=0.1)
    with pytest.raises(RuntimeError), busy.reading(10):
        fail_late()
    slow = busy.ms_per_candidate
    assert slow >= 0.1 + MEMORY * (50 / 10 - 0.1)
    with busy.reading(10):
        pass  # failed at once
    assert busy.ms_per_candidate == slow
    busy.ms_per_candidate = 1000.0
    with pytest.raises(RuntimeError), busy.reading(10):
        fail_late()
    assert busy.ms_per_candidate == 1000.0  # it may be as slow as it was thought to be


def test_what_a_hang_let_suspect_is_forgotten_with_the_first_answer():
    back = load(target_ms=20.0, ms_per_candidate=0.1)
    for _ in range(3):
        with pytest.raises(RuntimeError), back.reading(10):
            fail_late()
    assert back.ms_per_candidate > 1.0
    with back.reading(1000) as reading:
        reading.succeeded = True
    assert back.ms_per_candidate < 0.1  # not a running mean with what was only feared


def test_a_reading_that_raises_gives_its_place_back():
    busy = load()
    with pytest.raises(RuntimeError), busy.reading(10):
        raise RuntimeError
    assert busy.waiting == 0
