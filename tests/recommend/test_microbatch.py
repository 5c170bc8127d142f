"""Calls of several threads in one, each with its own answer."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from recommend.microbatch import Crowded, MicroBatch


class Doubled:
    """Doubles numbers, remembers its batches; holds the first back until it may go on; 13 is refused."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.may_go = threading.Event(), threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        if not self.entered.is_set():
            self.entered.set()
            self.may_go.wait(30)
        if 13 in numbers:
            raise ValueError("13 brings bad luck")
        return [2 * number for number in numbers]


def waiting(batch: MicroBatch, count: int) -> None:
    until = time.monotonic() + 30
    while len(batch) < count and time.monotonic() < until:
        time.sleep(0.001)
    assert len(batch) == count


def with_others(answer: Doubled, batch: MicroBatch[int, int], numbers: Sequence[int]):
    """Asks 0 first, and the other numbers while that is being answered."""
    with ThreadPoolExecutor(len(numbers) + 1) as pool:
        first = pool.submit(batch, 0)
        assert answer.entered.wait(30)
        others = [pool.submit(batch, number) for number in numbers]
        waiting(batch, len(numbers))
        answer.may_go.set()
        return first.result(30), others


def test_who_comes_while_others_are_served_shares_the_next_call():
    answer = Doubled()
    batch = MicroBatch(answer, most=8)
    first, others = with_others(answer, batch, range(1, 6))
    assert first == 0
    assert [other.result(30) for other in others] == [2, 4, 6, 8, 10]
    assert [len(numbers) for numbers in answer.batches] == [1, 5]
    assert sorted(answer.batches[1]) == [1, 2, 3, 4, 5]


def test_no_call_is_larger_than_allowed():
    answer = Doubled()
    _, others = with_others(answer, MicroBatch(answer, most=2), range(1, 6))
    assert [other.result(30) for other in others] == [2, 4, 6, 8, 10]
    assert [len(numbers) for numbers in answer.batches] == [1, 2, 2, 1]


def test_questions_of_two_kinds_share_no_call_and_keep_their_order():
    answer = Doubled()
    _, others = with_others(answer, MicroBatch(answer, most=3, kind=lambda number: number > 10), [1, 2, 20, 3, 4, 5, 6])
    assert [other.result(30) for other in others] == [2, 4, 40, 6, 8, 10, 12]
    arrived = [number for numbers in answer.batches for number in numbers]
    assert sorted(arrived) == [0, 1, 2, 3, 4, 5, 6, 20]
    assert [20] in answer.batches
    assert max(map(len, answer.batches)) <= 3


def test_a_question_that_cannot_be_answered_spoils_no_other():
    answer = Doubled()
    _, others = with_others(answer, MicroBatch(answer, most=8), [1, 13, 2])
    assert others[0].result(30) == 2
    assert others[2].result(30) == 4
    with pytest.raises(ValueError, match="bad luck"):
        others[1].result(30)


def test_whose_turn_does_not_come_in_time_leaves_the_queue():
    answer = Doubled()
    batch = MicroBatch(answer, most=8)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(batch, 0)
        assert answer.entered.wait(30)
        with pytest.raises(Crowded, match=r"0\.05 s"):
            batch(1, timeout_s=0.05)
        assert len(batch) == 0
        answer.may_go.set()
        assert first.result(30) == 0
    assert batch(2) == 4
    assert answer.batches == [[0], [2]]


def test_a_call_is_held_back_for_those_who_are_under_way_and_not_for_nobody():
    calls: list[list[int]] = []

    def same(numbers: Sequence[int]) -> list[int]:
        calls.append(list(numbers))
        return list(numbers)

    alone = MicroBatch(same, most=8, window_ms=20_000, expected=lambda: 1)
    assert alone(5) == 5  # does not wait twenty seconds
    together = MicroBatch(same, most=8, window_ms=20_000, expected=lambda: 3)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(together, [1, 2, 3])) == [1, 2, 3]
    assert [sorted(numbers) for numbers in calls] == [[5], [1, 2, 3]]


def test_many_threads_each_get_their_own():
    batch = MicroBatch(lambda numbers: [number * number for number in numbers], most=4)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(batch, range(2000))) == [number * number for number in range(2000)]
