import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Histories
from retrieval.examples import Examples, Positions, Windows
from tests.retrieval.toy import random_log

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=14), max_size=6)
KINDS = [Positions.of, Windows.of]


def numbered(lists: list[list[int]]) -> tuple[Histories, list[int]]:
    """Lists of the same lengths in which every entry is a number of its own, and the entries that follow another."""
    starts = np.cumsum([0, *map(len, lists)]).tolist()
    distinct = [list(range(start, start + len(items))) for start, items in zip(starts, lists, strict=False)]
    return Histories.of(distinct), [entry for items in distinct for entry in items[1:]]


def everything(examples: Examples) -> np.ndarray:
    return np.arange(len(examples))


@given(LISTS, st.integers(1, 5))
@settings(max_examples=60)
def test_positions_equal_a_plain_loop(lists, history_items):
    contexts, targets = [], []
    for items in lists:
        for place in range(1, len(items)):
            before = items[:place][::-1][:history_items]
            contexts.append(before + [NO_ITEM] * (history_items - len(before)))
            targets.append(items[place])
    found = Positions.of(Histories.of(lists), history_items)
    assert len(found) == len(found.targets) == len(targets)
    inputs, wanted = found.batch(everything(found))
    assert wanted.tolist() == targets
    assert inputs.tolist() == contexts
    assert inputs.shape == (len(targets), history_items)


@given(LISTS, st.integers(1, 5))
@settings(max_examples=60)
def test_windows_ask_every_place_once_and_know_what_came_before_and_nothing_else(lists, history_items):
    histories, followers = numbered(lists)
    found = Windows.of(histories, history_items)
    assert sorted(found.targets.tolist()) == sorted(followers)
    if not followers:
        assert len(found) == 0
        return
    inputs, targets = found.batch(everything(found))
    assert inputs.shape[1] <= history_items
    asked = targets != NO_ITEM
    assert sorted(targets[asked].tolist()) == followers
    assert (targets[asked] == inputs[asked] + 1).all()  # entries are numbered: the next one is the one that follows
    assert ((inputs != NO_ITEM) == asked).all()
    assert (asked[:, :-1] | ~asked[:, 1:]).all()  # padding stands behind
    both = asked[:, 1:]
    assert (inputs[:, 1:][both] == inputs[:, :-1][both] + 1).all()


@given(LISTS, st.integers(1, 5))
@settings(max_examples=40)
def test_the_last_window_of_a_list_is_as_long_as_it_can_be(lists, history_items):
    histories, _ = numbered(lists)
    found = Windows.of(histories, history_items)
    length = dict(zip(found.end.tolist(), (found.end - found.start).tolist(), strict=True))
    for items, end in zip(lists, histories.offsets[1:].tolist(), strict=True):
        if len(items) > 1:
            assert length[end] == min(len(items), history_items + 1)


@pytest.mark.parametrize("kind", KINDS)
@given(lists=LISTS, positions=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_batches_hold_every_example_once(kind, lists, positions, seed):
    found = kind(Histories.of(lists), 4)
    batches = found.batches(positions, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(found)))
    again = found.batches(positions, np.random.default_rng(seed))
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


@pytest.mark.parametrize("kind", KINDS)
def test_another_order_each_time_in_batches_of_about_the_size_asked_for(kind):
    found = kind(random_log(40, users=400, longest=30), 12)
    rng = np.random.default_rng(0)
    one, two = found.batches(100, rng), found.batches(100, rng)
    assert [batch.tolist() for batch in one] != [batch.tolist() for batch in two]
    asked = np.array([int((found.batch(batch)[1] != NO_ITEM).sum()) for batch in one])
    assert asked.sum() == len(found.targets)
    assert len(one) == pytest.approx(len(found.targets) / 100, abs=1.5)
    assert (asked <= 100 + 12).all()
    assert np.sort(asked)[1] >= 100 - 12  # one batch may be left over


def test_windows_of_like_length_come_together_so_that_little_is_padded():
    found = Windows.of(random_log(40, users=2000, longest=60), 50)
    batches = found.batches(500, np.random.default_rng(0))
    inputs = [found.batch(batch)[0] for batch in batches]
    padded = sum(int((batch == NO_ITEM).sum()) for batch in inputs)
    assert padded / sum(batch.numel() for batch in inputs) < 0.15
    firsts = [batch.shape[1] for batch in inputs]
    assert firsts != sorted(firsts)  # but long and short batches alternate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lists", [[], [[]], [[3], [], [5]]])
def test_lists_that_teach_nothing_make_no_examples(kind, lists):
    found = kind(Histories.of(lists), 3)
    assert len(found.targets) == len(found) == 0
    assert [len(batch) for batch in found.batches(10, np.random.default_rng(0))] in ([], [0])
