from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import Histories
from retrieval.transitions import Transitions, TransitionsConfig, count_pairs

N = 7
LISTS = st.lists(st.lists(st.integers(0, N - 1), max_size=9), max_size=6)


def counted_by_hand(lists: list[list[int]], config: TransitionsConfig) -> np.ndarray:
    counts = np.zeros((N, N))
    for items in lists:
        for later in range(len(items)):
            for earlier in range(later):
                gap = later - earlier
                if gap <= config.window:
                    counts[items[earlier], items[later]] += config.gap_decay ** (gap - 1)
                    counts[items[later], items[earlier]] += config.backward * config.gap_decay ** (gap - 1)
    return counts


@given(LISTS, st.integers(1, 10), st.sampled_from([1.0, 0.8, 0.3]), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_counts_equal_a_plain_double_loop(lists, window, gap_decay, backward):
    config = TransitionsConfig(window=window, gap_decay=gap_decay, backward=backward)
    found = count_pairs(Histories.of(lists), N, config).toarray()
    np.testing.assert_allclose(found, counted_by_hand(lists, config), rtol=1e-5)


def test_weights_by_hand():
    config = TransitionsConfig(window=2, gap_decay=0.8, backward=0.5, row_power=0.5, column_power=0.3)
    found = Transitions.fit(Histories.of([[0, 1, 2], [0, 1]]), 4, config).weights.toarray()
    # 0→1 twice, 1→2 once, 0→2 at two steps; half of each backwards.
    counts = np.array([[0, 2, 0.8, 0], [1, 0, 1, 0], [0.4, 0.5, 0, 0], [0, 0, 0, 0]])
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    assert found[0, 1] == pytest.approx(2 / (rows[0] ** 0.5 * columns[1] ** 0.3))
    assert found[0, 2] == pytest.approx(0.8 / (2.8**0.5 * 1.8**0.3))
    assert found[2, 1] == pytest.approx(0.5 / (0.9**0.5 * 2.5**0.3))
    assert not found[3].any()
    assert not found[:, 3].any()


@given(LISTS.filter(bool), st.integers(1, 5), st.sampled_from([1.0, 0.5]))
@settings(max_examples=40, deadline=None)
def test_scores_are_the_decayed_sum_of_the_rows_of_the_last_items(lists, history_items, decay):
    config = TransitionsConfig(history_items=history_items, history_decay=decay)
    fitted = Transitions.fit(Histories.of([[0, 1, 2, 3, 4, 5, 6], *lists]), N, config)
    dense = fitted.weights.toarray()
    found = fitted.scores(Histories.of(lists))
    assert found.shape == (len(lists), N)
    assert found.dtype == np.float32
    for user, items in enumerate(lists):
        recent = list(reversed(items))[:history_items]
        expected = sum((decay**step * dense[item] for step, item in enumerate(recent)), np.zeros(N))
        np.testing.assert_allclose(found[user].toarray()[0], expected, rtol=1e-4, atol=1e-6)


def test_lists_do_not_run_into_each_other():
    counts = count_pairs(Histories.of([[0, 1], [], [2, 3]]), N, TransitionsConfig()).toarray()
    assert counts[1, 2] == counts[0, 2] == counts[0, 3] == 0
    assert counts[0, 1] == counts[2, 3] == 1


def test_an_empty_log_fits_and_scores_nothing():
    fitted = Transitions.fit(Histories.of([[], []]), N, TransitionsConfig())
    assert fitted.weights.nnz == 0
    assert fitted.scores(Histories.of([[1, 2], []])).nnz == 0


def test_saved_and_loaded_weights_are_equal(tmp_path):
    config = TransitionsConfig(history_items=3)
    fitted = Transitions.fit(Histories.of([[0, 1, 2, 5], [5, 1]]), N, config)
    fitted.save(tmp_path)
    loaded = Transitions.load(tmp_path, N, config)
    np.testing.assert_array_equal(loaded.weights.toarray(), fitted.weights.toarray())
    assert loaded.weights.dtype == np.float32


@given(LISTS, LISTS, st.sampled_from([0.0, 0.5]))
@settings(max_examples=40, deadline=None)
def test_counting_on_from_a_part_equals_counting_the_whole(first, second, backward):
    config = TransitionsConfig(window=3, backward=backward)
    part = Transitions.fit(Histories.of(first), N, config)
    whole = Transitions.fit(Histories.of([*first, *second]), N, config)
    found = part.with_more(Histories.of(second))
    np.testing.assert_allclose(found.weights.toarray(), whole.weights.toarray(), rtol=1e-4, atol=1e-6)


@given(LISTS, LISTS)
@settings(max_examples=40, deadline=None)
def test_lists_that_have_grown_take_the_place_of_what_they_were(before, more):
    config = TransitionsConfig(window=4)
    longer = [[*items, *(more[place] if place < len(more) else [])] for place, items in enumerate(before)]
    whole = Transitions.fit(Histories.of(longer), N, config)
    grown = Transitions.fit(Histories.of(before), N, config).with_more(
        Histories.of(longer), before=Histories.of(before)
    )
    np.testing.assert_allclose(grown.weights.toarray(), whole.weights.toarray(), rtol=1e-3, atol=1e-5)


def test_counts_are_saved_and_go_on_after_a_reload(tmp_path):
    fitted = Transitions.fit(Histories.of([[0, 1, 2], [0, 1], [5, 4, 5]]), N, TransitionsConfig())
    fitted.save(tmp_path)
    loaded = Transitions.load(tmp_path, N, fitted.config, counted=True)
    more = Histories.of([[2, 3], [1, 0, 2]])
    np.testing.assert_allclose(
        loaded.with_more(more).weights.toarray(), fitted.with_more(more).weights.toarray(), rtol=1e-5
    )
    with pytest.raises(ValueError, match="counted=True"):
        Transitions.load(tmp_path, N, fitted.config).with_more(more)


def test_a_log_without_a_pair_is_saved_and_counted_on(tmp_path):
    nothing = Transitions.fit(Histories.of([[1], []]), N, TransitionsConfig())
    nothing.save(tmp_path)
    found = Transitions.load(tmp_path, N, nothing.config, counted=True).with_more(Histories.of([[1, 2]]))
    assert found.weights[1, 2] > 0


def test_an_item_counted_for_the_first_time_speaks_for_itself():
    stand_ins = sp.csr_matrix(([1.0, 1.0], ([5, 6], [0, 0])), shape=(N, N), dtype=np.float32)
    part = replace(Transitions.fit(Histories.of([[0, 1]]), N, TransitionsConfig()), stand_ins=stand_ins)
    found = part.with_more(Histories.of([[5, 2]]))
    assert found.stand_ins is not None
    assert found.stand_ins.toarray().nonzero()[0].tolist() == [6]
    scores = found.scores(Histories.of([[5]])).toarray()[0]
    assert scores[2] > 0
    assert scores[1] == 0
