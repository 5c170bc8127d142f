import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Histories
from retrieval.sequence_tower import ROTARY_BASE, SequenceTower, rotary_angles, turned
from retrieval.towers import SequenceConfig, TwoTowers
from tests.retrieval.toy import SEQUENCE, towers

N, H = 15, SEQUENCE.history_items
MODEL = towers(N, config=SEQUENCE.model_copy(update={"layers": 2}))
LISTS = st.lists(st.integers(0, N - 1), min_size=1, max_size=H)


@pytest.fixture(autouse=True)
def without_dropout():
    MODEL.eval()


@torch.no_grad()
def at_places(rows: list[list[int]], model: TwoTowers = MODEL) -> np.ndarray:
    """(B, T, D) from rows oldest first, padded behind."""
    return model.user_vectors_at(torch.tensor(rows, dtype=torch.int64)).numpy()


@given(LISTS, st.data())
@settings(max_examples=40)
def test_a_place_knows_nothing_of_what_comes_later_and_all_that_came_before(items, data):
    before = at_places([items])[0]
    place = data.draw(st.integers(0, len(items) - 1))
    changed = items.copy()
    changed[place] = data.draw(st.integers(0, N - 1).filter(lambda row: row != items[place]))
    after = at_places([changed])[0]
    np.testing.assert_allclose(after[:place], before[:place], rtol=1e-4, atol=1e-6)
    assert (np.abs(after[place:, :-1] - before[place:, :-1]).max(axis=1) > 1e-4).all()


@given(LISTS)
@settings(max_examples=30)
def test_what_training_learns_at_a_place_is_what_a_request_with_that_history_is_told(items):
    """One vector at every place of a window, and one for each beginning of the list as a history."""
    beginnings = Histories.of([items[: place + 1] for place in range(len(items))])
    np.testing.assert_allclose(at_places([items])[0], MODEL.user_vectors(beginnings), rtol=1e-4, atol=1e-5)


def test_padding_behind_and_neighbours_change_nothing():
    lists = [[3], [4, 1, 4, 9], [14, 0]]
    padded = at_places([items + [NO_ITEM] * (H - len(items)) for items in lists])
    for user, items in enumerate(lists):
        np.testing.assert_allclose(padded[user, : len(items)], at_places([items])[0], rtol=1e-4, atol=1e-6)


def test_the_order_of_a_history_matters():
    one, other = MODEL.user_vectors(Histories.of([[1, 2, 3], [2, 1, 3]]))
    assert np.abs(one - other).max() > 1e-2


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 15), st.integers(0, 99))
@settings(max_examples=40)
def test_rotary_products_depend_on_the_distance_alone(first, second, shift, seed):
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angles = rotary_angles(40, 8)

    def product(query_at: int, key_at: int) -> float:
        turned_query, turned_key = (
            turned(vector.repeat(40, 1), angles)[place] for vector, place in ((query, query_at), (key, key_at))
        )
        return float(turned_query @ turned_key)

    assert product(first + shift, second + shift) == pytest.approx(product(first, second), abs=1e-5)
    assert product(first, first) == pytest.approx(float(query @ key), abs=1e-5)


def test_rotary_turns_each_pair_as_a_complex_number():
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pairs = vectors[:, :4].numpy() + 1j * vectors[:, 4:].numpy()
    place, pair = np.arange(6)[:, None], np.arange(4)
    expected = pairs * np.exp(1j * place * ROTARY_BASE ** (-pair / 4))
    found = turned(vectors, rotary_angles(6, 8)).numpy()
    np.testing.assert_allclose(found[:, :4] + 1j * found[:, 4:], expected, rtol=1e-4, atol=1e-5)


def test_a_window_may_begin_anywhere():
    """The same items some places on, as in the middle of a longer window that begins with others' turn."""
    block, angles = MODEL.user.blocks[0], rotary_angles(20, 4)
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(hidden, angles[9:14]), block(hidden, angles[:5]), rtol=1e-4, atol=1e-5)


def normalised(vectors: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    centre, spread = vectors.mean(axis=1, keepdims=True), vectors.var(axis=1, keepdims=True)
    return (vectors - centre) / np.sqrt(spread + layer.eps) * layer.weight.numpy() + layer.bias.numpy()


def linear(vectors: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return vectors @ layer.weight.numpy().T + layer.bias.numpy()


@torch.no_grad()
def test_the_whole_tower_written_out():
    """Attention by explicit loops, rotation by complex numbers, GELU by its integral."""
    from math import erf

    items, heads, width = [7, 2, 2, 11], 2, 8
    hidden = MODEL.item_vectors()[items, :-1] * np.sqrt(width)
    for block in MODEL.user.blocks:
        parts = linear(normalised(hidden, block.attention_norm), block.query_key_value).reshape(4, 3, heads, 4)
        mixed = np.zeros((4, heads, 4))
        for head in range(heads):
            query, key, value = parts[:, 0, head], parts[:, 1, head], parts[:, 2, head]
            angle = np.arange(4)[:, None] * ROTARY_BASE ** (-np.arange(2) / 2)
            query, key = ((part[:, :2] + 1j * part[:, 2:]) * np.exp(1j * angle) for part in (query, key))
            for place in range(4):
                score = np.array([(query[place] * key[earlier].conj()).sum().real for earlier in range(place + 1)]) / 2
                share = np.exp(score) / np.exp(score).sum()
                mixed[place, head] = share @ value[: place + 1]
        hidden = hidden + linear(mixed.reshape(4, width), block.out)
        inner = linear(normalised(hidden, block.forward_norm), block.feed_forward[0])
        active = inner * (1 + np.vectorize(erf)(inner / np.sqrt(2))) / 2
        hidden = hidden + linear(active, block.feed_forward[3])
    expected = np.hstack([normalised(hidden, MODEL.user.norm), np.ones((4, 1))])
    np.testing.assert_allclose(at_places([items])[0], expected, rtol=1e-3, atol=1e-4)


def test_with_ids_alone_it_reads_residuals_alone():
    """SASRec: texts have no part in it."""
    config = SequenceConfig(**{**SEQUENCE.model_dump(), "text_dim": 0})
    one, other = towers(N, config=config), towers(N, config=config)
    other.text = torch.zeros_like(other.text)
    asked = Histories.of([[3, 4], []])
    np.testing.assert_array_equal(one.user_vectors(asked), other.user_vectors(asked))
    np.testing.assert_array_equal(one.item_vectors(), other.item_vectors())


def test_dropout_acts_in_training_alone():
    MODEL.train()
    rows = torch.tensor([[1, 2, 3]])
    assert not torch.equal(MODEL.user_vectors_at(rows), MODEL.user_vectors_at(rows))
    MODEL.eval()
    assert torch.equal(MODEL.user_vectors_at(rows), MODEL.user_vectors_at(rows))


def test_the_angles_are_no_weights():
    tower = SequenceTower(8, layers=1, heads=2, history_items=30, dropout=0.0)
    assert not any("rotary" in name for name in tower.state_dict())
    assert tower.rotary.shape == (30, 4)
