import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.schema import NO_ITEM, Histories
from retrieval import mining
from retrieval.mining import HardNegatives, MiningConfig
from retrieval.train import validation_ndcg10
from tests.retrieval.lesson import CONFIG, TRAIN, VALIDATION, fresh, same, sample, trained, weights

CONFIG_MINED = CONFIG.model_copy(update={"hard_negatives": MiningConfig(per_position=4, first_rank=1, last_rank=12)})
N, USERS = 40, 9


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_hand(scores: np.ndarray, user: int, target: int, taken: Histories, text: np.ndarray, config: MiningConfig):
    """All items that may be drawn for one position, by the definition."""
    somebodys = set(taken.item_rows.tolist())
    free = somebodys - set(taken[user].tolist())
    window = [row for row in np.argsort(-scores, kind="stable") if row in free][config.first_rank : config.last_rank]
    return {row for row in window if text[row] @ text[target] < config.duplicate_cosine}


def material(seed: int):
    rng = np.random.default_rng(seed)
    users, items = (rng.standard_normal((n, 5)).astype(np.float32) for n in (USERS, N))
    text = unit(rng.standard_normal((N, 3)))  # three dimensions: many are close to each other
    taken = Histories.of([rng.integers(0, N, rng.integers(1, 12)).tolist() for _ in range(USERS)])
    targets = np.array([taken[user][-1] for user in range(USERS)])
    return rng, users, items, text, taken, targets


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_what_is_drawn_is_what_the_definition_allows(seed):
    rng, users, items, text, taken, targets = material(seed)
    config = MiningConfig(first_rank=3, last_rank=15, per_position=20, duplicate_cosine=0.6)
    hard = HardNegatives.mine(users, items, taken, text=text, config=config)
    position = np.array([*range(USERS), 0])  # a user may ask at several places
    wanted = np.array([*targets, taken[0][0]])
    found = hard.draw(position, wanted, rng)
    assert len(found) == USERS + 1
    for user, target, drawn in zip(position, wanted, found, strict=True):
        rows = drawn[drawn != NO_ITEM].tolist()
        assert len(set(rows)) == len(rows)
        assert set(rows) == by_hand(users[user] @ items.T, user, target, taken, text, config)


def test_fewer_are_drawn_evenly_from_between_the_ranks():
    rng, users, items, text, taken, targets = material(1)
    config = MiningConfig(first_rank=2, last_rank=8, per_position=2, duplicate_cosine=1.0)
    hard = HardNegatives.mine(users, items, taken, text=np.zeros_like(text), config=config)
    drawn = np.concatenate(
        [hard.draw(np.zeros(50, dtype=np.int64), np.repeat(targets[:1], 50), rng) for _ in range(60)]
    )
    allowed = by_hand(users[0] @ items.T, 0, targets[0], taken, np.zeros_like(text), config)
    rows, times = np.unique(drawn, return_counts=True)
    assert drawn.shape == (3000, 2)
    assert set(rows.tolist()) == allowed
    np.testing.assert_allclose(times / 3000, 2 / len(allowed), atol=0.05)


def test_mining_in_small_parts_finds_the_same(monkeypatch):
    _, users, items, text, taken, _ = material(2)
    config = MiningConfig(first_rank=0, last_rank=9, per_position=9)
    whole = HardNegatives.mine(users, items, taken, text=text, config=config)
    monkeypatch.setattr(mining, "SCORES_AT_ONCE", 1)
    np.testing.assert_array_equal(
        whole.ranked, HardNegatives.mine(users, items, taken, text=text, config=config).ranked
    )


def test_who_took_nearly_everything_has_short_lists():
    items = np.diag(np.arange(4, 0, -1)).astype(np.float32)
    taken = Histories.of([[0, 1, 2], [3]])
    config = MiningConfig(first_rank=0, last_rank=100, per_position=3)
    hard = HardNegatives.mine(
        np.ones((2, 4), np.float32), items, taken, text=np.eye(4, dtype=np.float32), config=config
    )
    assert hard.ranked.tolist() == [[3, NO_ITEM, NO_ITEM, NO_ITEM], [0, 1, 2, NO_ITEM]]
    assert set(hard.draw(np.array([0]), np.array([2]), np.random.default_rng(0))[0]) <= {3, NO_ITEM}


def test_ranks_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="first_rank is 20 and last_rank 20"):
        MiningConfig(first_rank=20, last_rank=20)


# --- in training


def test_a_training_with_mined_negatives_learns_the_planted_sequence(kind, monkeypatch):
    sample(monkeypatch, sampled=True)
    seen, draw = [], HardNegatives.draw

    def spied(self, users, targets, rng):
        seen.append((users, targets, draw(self, users, targets, rng)))
        return seen[-1][2]

    monkeypatch.setattr(HardNegatives, "draw", spied)
    model = fresh(kind, epochs=20)
    trained(model, config=CONFIG_MINED)
    assert validation_ndcg10(model, VALIDATION) > 0.9
    from_own_lists(seen)


def from_own_lists(seen):
    """Each position's negatives are none of what its own user took: it was looked up under the right user."""
    took = [set(TRAIN[user].tolist()) for user in range(len(TRAIN))]
    assert len(seen) > 20
    for users, targets, mined in seen:
        assert mined.shape == (len(targets), 4)
        for user, target, rows in zip(users, targets, mined, strict=True):
            assert target in took[user]
            assert not took[user] & set(rows[rows != NO_ITEM].tolist())


def test_a_full_softmax_has_them_all_and_mines_none(kind):
    plain, mined = fresh(kind, epochs=3), fresh(kind, epochs=3)
    trained(plain)
    trained(mined, config=CONFIG_MINED)
    assert same(weights(plain), weights(mined))
