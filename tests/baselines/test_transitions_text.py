"""Transitions plus text against the recipe."""

import numpy as np
import pytest

from baselines.transitions_text import TransitionsText, TransitionsTextConfig
from data.schema import Histories
from retrieval.transitions import Transitions, TransitionsConfig

N = 10


@pytest.fixture
def train() -> Histories:
    rng = np.random.default_rng(0)
    return Histories.of([rng.integers(0, N, rng.integers(0, 8)).tolist() for _ in range(20)])


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_scores_are_the_recipe(train: Histories, weight: float) -> None:
    vectors = np.random.default_rng(1).standard_normal((N, 4)).astype(np.float32) + 3
    config = TransitionsTextConfig(text_weight=weight)
    source = TransitionsText.fit(train, N, config, text_vectors=vectors)
    history = [4, 1, 7]
    found = source.candidates(Histories.of([history]), N, exclude_known=False)

    counted = Transitions.fit(train, N, TransitionsConfig()).weights.toarray()
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    expected = sum(
        TransitionsConfig().history_decay ** j * (counted[row] + weight * centred @ centred[row])
        for j, row in enumerate(history[::-1])
    )
    np.testing.assert_allclose(found.score[0], expected[found.item_rows[0]], atol=1e-5)


def test_equal_texts_give_no_nan(train: Histories) -> None:
    source = TransitionsText.fit(train, N, TransitionsTextConfig(), text_vectors=np.ones((N, 4), np.float32))
    assert np.isfinite(source.candidates(Histories.of([[0]]), 5).score).all()


def test_one_vector_for_each_item_is_demanded(train: Histories) -> None:
    with pytest.raises(ValueError, match="10 items but 9 text vectors"):
        TransitionsText.fit(train, N, TransitionsTextConfig(), text_vectors=np.ones((9, 4), np.float32))
