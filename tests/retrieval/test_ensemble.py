from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import NO_ITEM, Histories
from index.faiss_index import FlatIndex
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.user_tower import UserTowerKind
from tests.retrieval.toy import SMALL, TOWER_WEIGHTS, ensemble, towers

N = 20
MADE = ensemble(N)  # two copies of recency, one of sequence
ASKED = Histories.of([[1, 2, 3], [19], [], [4, 4, 0, 17, 11, 9, 2]])


def mean_scores(found: TowerEnsemble, histories: Histories) -> dict[str, np.ndarray]:
    """Kind → (B, N), each copy by itself and the mean of them."""
    scores: dict[str, list[np.ndarray]] = {}
    for member in found.members:
        users, items = member.towers.user_vectors(histories), member.towers.item_vectors()
        scores.setdefault(member.kind.value, []).append(users @ items.T)
    return {kind: np.mean(copies, axis=0) for kind, copies in scores.items()}


ITEMS, EXPECTED = MADE.item_vectors(), mean_scores(MADE, ASKED)
USERS = MADE.user_vectors(ASKED, ITEMS)


def test_one_inner_product_is_the_weighted_sum_of_the_kinds_mean_scores():
    assert USERS.shape == (4, 15 + 15 + 9)
    assert ITEMS.shape == (N, 15 + 15 + 9)
    assert USERS.dtype == ITEMS.dtype == MADE.weighted(USERS).dtype == np.float32
    found = MADE.weighted(USERS) @ ITEMS.T
    np.testing.assert_allclose(found, 0.5 * EXPECTED["recency"] + 0.8 * EXPECTED["sequence"], rtol=1e-4, atol=1e-4)


@given(st.lists(st.lists(st.integers(0, N - 1), min_size=3, max_size=3), min_size=4, max_size=4))
def test_scores_of_single_items_are_those_of_the_kinds_whatever_their_weights(rows):
    item_rows = np.array(rows)
    for weights in (TOWER_WEIGHTS, dict.fromkeys(UserTowerKind, 0.0)):
        found = replace(MADE, weights=weights)
        scores = found.scores(USERS, ITEMS, item_rows)
        assert list(scores) == ["recency", "sequence"]
        for kind, dense in EXPECTED.items():
            assert scores[kind].dtype == np.float32
            np.testing.assert_allclose(scores[kind], np.take_along_axis(dense, item_rows, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [(0.5, 0.8), (1.0, 0.0), (0.0, 2.0)])
def test_one_search_in_one_index_finds_the_best_of_the_weighted_sum(weights):
    found = replace(MADE, weights=dict(zip(UserTowerKind, weights, strict=False)))
    summed = weights[0] * EXPECTED["recency"] + weights[1] * EXPECTED["sequence"]
    _, rows = FlatIndex(ITEMS).search(found.weighted(USERS), 6)
    assert NO_ITEM not in rows
    np.testing.assert_array_equal(rows, np.argsort(-summed, axis=1)[:, :6])


def test_copies_of_one_kind_are_averaged_and_not_summed():
    """Twice the same towers are worth what they are worth once."""
    model = towers(N)
    once = TowerEnsemble((Member(UserTowerKind.RECENCY, 1, model),), {UserTowerKind.RECENCY: 1.0})
    twice = replace(once, members=(*once.members, Member(UserTowerKind.RECENCY, 2, model)))
    one, two = (found.user_vectors(ASKED, found.item_vectors()) @ found.item_vectors().T for found in (once, twice))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_names_kinds_and_the_longest_history():
    assert [member.name for member in MADE.members] == ["recency-1", "recency-2", "sequence-1"]
    assert MADE.kinds == (UserTowerKind.RECENCY, UserTowerKind.SEQUENCE)
    assert MADE.history_items == 5
    longer = towers(N, config=SMALL.model_copy(update={"history_items": 11}))
    assert replace(MADE, members=(*MADE.members, Member(UserTowerKind.RECENCY, 3, longer))).history_items == 11


def test_nobody_has_no_vectors():
    assert MADE.user_vectors(Histories.of([]), ITEMS).shape == (0, 39)
