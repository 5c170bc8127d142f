from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.budget import Cap, Cut, Pace, Plan, Wanted, plan, plan_together, without_older
from rerank.packing import NO_AGE, Prompt


def prompt(items: list[int], candidates: list[int]) -> Prompt:
    """Items (tokens each, oldest first) between a word before and one behind them."""
    ages = np.repeat(np.arange(len(items))[::-1], items)
    ages = np.concatenate([[NO_AGE], ages, [NO_AGE]])
    tokens = tuple(np.full(length, 100 + place) for place, length in enumerate(candidates))
    return Prompt(np.arange(len(ages)), ages, tokens)


WHOLE = prompt([3, 3, 3], [4, 4, 4, 4])  # 11 + 16 tokens


@pytest.mark.parametrize(
    ("limit", "cut", "depth", "prefix"),
    [
        (27, Cut.NONE, 4, 11),
        (26, Cut.DEPTH, 3, 11),
        (19, Cut.DEPTH, 2, 11),
        (18, Cut.HISTORY, 2, 8),
        (15, Cut.HISTORY, 2, 5),
        (12, Cut.PASSED, 0, 11),
        (0, Cut.PASSED, 0, 11),
    ],
)
def test_candidates_go_first_then_history_then_all(limit, cut, depth, prefix):
    made = plan(WHOLE, {Cap.TOKENS: limit})
    assert (made.cut, made.depth, len(made.prompt.prefix)) == (cut, depth, prefix)
    assert made.cap == (Cap.NONE if cut is Cut.NONE else Cap.TOKENS)


@pytest.mark.parametrize(("limit", "kept"), [(26, 9), (25, 5), (18, 5), (17, 1), (10, 1), (9, None)])
def test_history_goes_in_whole_blocks_so_that_prefixes_come_back(limit, kept):
    whole = replace(prompt([2] * 9, [3, 3]), block_items=4)  # 2 + 18 + 6 tokens
    made = plan(whole, {Cap.TOKENS: limit})
    ages = made.prompt.ages[made.prompt.ages != NO_AGE]
    assert (len(set(ages.tolist())) if made.depth else None) == kept


def test_of_a_single_block_items_go_one_by_one():
    whole = replace(prompt([2] * 3, [3, 3]), block_items=4)  # 2 + 6 + 6 tokens
    kept = [len(plan(whole, {Cap.TOKENS: limit}).prompt.prefix) for limit in (14, 13, 12, 11, 10)]
    assert kept == [8, 6, 6, 4, 4]


def test_the_narrowest_cap_is_named():
    assert plan(WHOLE, {Cap.TOKENS: 20, Cap.TIME: 19, Cap.DAY: 40}).cap is Cap.TIME
    assert plan(WHOLE, {}).cut is Cut.NONE


def test_a_remembered_history_costs_nothing_and_is_never_cut():
    assert plan(WHOLE, {Cap.TOKENS: 16}, remembered=True).cut is Cut.NONE
    assert plan(WHOLE, {Cap.TOKENS: 9}, remembered=True).depth == 2
    assert plan(WHOLE, {Cap.TOKENS: 5}, remembered=True).cut is Cut.PASSED


@given(
    st.lists(st.integers(1, 5), max_size=5),
    st.lists(st.integers(1, 6), max_size=6),
    st.integers(0, 60),
    st.booleans(),
)
def test_no_plan_costs_more_than_its_limit_and_none_could_keep_more(items, candidates, limit, remembered):
    whole = prompt(items, candidates)
    made = plan(whole, {Cap.TOKENS: limit}, remembered=remembered)
    prefix = 0 if remembered else len(made.prompt.prefix)
    cost = prefix + sum(map(len, made.prompt.candidates)) if made.depth else 0
    assert cost <= limit or not candidates
    assert [part[0] for part in made.prompt.candidates] == [100 + place for place in range(made.depth)]
    if made.cut is Cut.DEPTH:
        assert cost + len(whole.candidates[made.depth]) > limit
    if made.cut is Cut.HISTORY:
        older = without_older(whole, int(made.prompt.ages.max()) + 2)
        assert len(older.prefix) + sum(candidates[:2]) > limit
        assert {NO_AGE, *range(int(made.prompt.ages.max()) + 1)} == set(made.prompt.ages.tolist())
    if made.cut is Cut.PASSED:
        assert sum(candidates[:2]) + (0 if remembered else 2 + (items[-1] if items else 0)) > limit


def test_a_pace_that_saw_little_promises_nothing():
    pace = Pace()
    for _ in range(Pace.LEAST - 1):
        pace.observe(100, 10.0)
    assert pace.tokens_within(1e6) == 0
    pace.observe(100, 10.0)
    assert pace.tokens_within(20.0) == pytest.approx(200, abs=1)


def test_a_pace_learns_base_and_slope_and_leaves_room_for_slow_requests():
    rng = np.random.default_rng(0)
    pace = Pace()
    for tokens in rng.integers(100, 2000, 256):
        pace.observe(int(tokens), (5 + 0.1 * tokens) * rng.lognormal(0, 0.05))
    allowed = pace.tokens_within(100)
    times = (5 + 0.1 * allowed) * rng.lognormal(0, 0.05, 10_000)
    assert np.quantile(times, 0.99) <= 105
    assert times.mean() > 75  # and does not throw half of it away


def test_a_pace_forgets_what_is_long_ago():
    pace = Pace()
    for _ in range(Pace.MOST):
        pace.observe(100, 1000.0)
    for _ in range(Pace.MOST):
        pace.observe(100, 10.0)
    assert pace.tokens_within(10.0) == pytest.approx(100, abs=1)


# --- several requests in one call


def steady() -> Pace:
    """10 ms and a tenth of a millisecond for each token, always."""
    pace = Pace()
    for tokens in range(100, 2000, 100):
        pace.observe(tokens, 10 + 0.1 * tokens)
    return pace


def together(*wanted: Wanted, behind_ms: float = 0.0) -> list[Plan]:
    return plan_together(wanted, steady(), behind_ms=behind_ms, row_tokens=8192)


def fed(plans: list[Plan]) -> list[int]:
    return [made.prompt.tokens if made.depth else 0 for made in plans]


def in_ms(tokens: int) -> float:
    """Time for so many tokens, and half a one."""
    return 10 + 0.1 * (tokens + 0.5)


def test_requests_of_one_call_divide_its_time() -> None:
    whole = Wanted(WHOLE, {}, in_ms(27))
    assert fed(together(whole)) == [27]
    plans = together(*[Wanted(WHOLE, {}, in_ms(4 * 19))] * 4)
    assert fed(plans) == [19] * 4
    assert [(made.cut, made.cap) for made in plans] == [(Cut.DEPTH, Cap.TIME)] * 4
    assert sum(fed(together(whole, whole))) <= 27


def test_the_shortest_cap_holds_for_the_call() -> None:
    plans = together(Wanted(WHOLE, {}, 10_000.0), Wanted(WHOLE, {}, in_ms(2 * 23)))
    assert fed(plans) == [23, 23]


def test_what_one_does_not_need_is_for_the_others() -> None:
    small = prompt([3], [4])  # 9 tokens
    none = prompt([3], [])
    plans = together(*(Wanted(one, {}, in_ms(9 + 27)) for one in (WHOLE, small, none)))
    assert fed(plans) == [27, 9, 0]
    assert [made.cut for made in plans] == [Cut.NONE] * 3


def test_who_has_no_cap_of_time_is_read_whole_and_the_others_have_the_rest() -> None:
    plans = together(Wanted(WHOLE, {}, in_ms(27 + 19)), Wanted(WHOLE, {}), Wanted(WHOLE, {Cap.TOKENS: 0}))
    assert fed(plans) == [19, 27, 0]
    assert [made.cap for made in plans] == [Cap.TIME, Cap.NONE, Cap.TOKENS]


def test_what_the_call_has_taken_already_is_behind() -> None:
    assert fed(together(Wanted(WHOLE, {}, in_ms(27) + 5), behind_ms=5.0)) == [27]
    assert fed(together(Wanted(WHOLE, {}, in_ms(27)), behind_ms=0.8)) == [19]
    assert fed(together(Wanted(WHOLE, {}, in_ms(27)), behind_ms=1000.0)) == [0]
