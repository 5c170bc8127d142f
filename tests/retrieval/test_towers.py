import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Histories
from retrieval.towers import TowerConfig, principal_directions
from tests.retrieval.toy import SMALL, text_vectors, towers

N = 15
MODEL = towers(N)
CONTEXTS = st.lists(st.integers(0, N - 1), max_size=SMALL.history_items)


def padded(items: list[int]) -> np.ndarray:
    return np.array([items + [NO_ITEM] * (SMALL.history_items - len(items))], dtype=np.int64)


def test_vectors_have_text_residual_and_bias_dimensions():
    items, users = MODEL.item_vectors(), MODEL.user_vectors(padded([1, 2]))
    assert items.shape == (N, 6 + 8 + 1)
    assert users.shape == (1, 15)
    assert items.dtype == users.dtype == np.float32
    np.testing.assert_array_equal(items[:, -1], MODEL.item.bias.detach().numpy())
    np.testing.assert_array_equal(items[:, 6:-1], MODEL.item.residual.detach().numpy())
    np.testing.assert_allclose(items[:, :6], MODEL.text.numpy() @ MODEL.item.text_map.weight.detach().numpy().T, 1e-4)
    assert users[0, -1] == 1


def test_without_residuals_only_text_and_bias_are_left():
    model = towers(N, config=TowerConfig(text_dim=6, residual_dim=0, history_items=4))
    assert model.item_vectors().shape == (N, 7)
    assert np.isfinite(model.user_vectors(padded([3]))).all()


def test_user_vector_by_hand():
    rows, user = [4, 9, 4], MODEL.user
    decay = 0.7 ** np.arange(3)
    weight = decay / np.linalg.norm(decay)
    mapped = MODEL.text.numpy()[rows] @ user.text_map.weight.detach().numpy().T
    expected = np.concatenate([10 * weight @ mapped, weight @ user.residual.detach().numpy()[rows], [1]])
    np.testing.assert_allclose(MODEL.user_vectors(padded(rows))[0], expected, rtol=1e-4, atol=1e-5)


@given(CONTEXTS)
@settings(max_examples=30, deadline=None)
def test_padding_has_no_influence(items):
    expected = MODEL.user_vectors(padded(items))
    shorter = MODEL.user_vectors(np.array([items], dtype=np.int64).reshape(1, -1))
    np.testing.assert_allclose(shorter, expected, rtol=1e-5, atol=1e-6)
    other = towers(N)
    with torch.no_grad():  # padding is read at row 0: it must not matter what stands there
        other.user.residual[0] = 1e6
        other.text = other.text.clone()
        other.text[0] = 1e6
    if 0 not in items:
        np.testing.assert_allclose(other.user_vectors(padded(items)), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_history_is_worth_the_biases_alone():
    assert MODEL.user_vectors(padded([])).tolist() == [[0.0] * 14 + [1.0]]


@given(CONTEXTS)
@settings(max_examples=30, deadline=None)
def test_parts_sum_to_the_user_vector(items):
    parts = MODEL.user.parts(MODEL.text, torch.from_numpy(padded(items))).detach().numpy()
    assert parts.shape == (1, SMALL.history_items, 14)
    np.testing.assert_allclose(parts.sum(axis=1), MODEL.user_vectors(padded(items))[:, :-1], rtol=1e-4, atol=1e-5)
    assert not parts[0, len(items) :].any()


def test_a_user_has_the_same_vector_alone_as_among_others():
    rng = np.random.default_rng(0)
    histories = Histories.of([rng.integers(0, N, rng.integers(0, 7)).tolist() for _ in range(20)])
    together = MODEL.user_vectors(histories.last(4))
    for user in range(20):
        alone = MODEL.user_vectors(Histories.of([histories[user].tolist()]).last(4))
        np.testing.assert_allclose(alone[0], together[user], rtol=1e-5, atol=1e-6)


def test_logits_are_inner_products_of_the_vectors():
    MODEL.eval()
    rows = np.array([3, 0, 11])
    logits = MODEL.logits(torch.from_numpy(padded([5, 6])), torch.from_numpy(rows)).detach().numpy()
    expected = MODEL.user_vectors(padded([5, 6])) @ MODEL.item_vectors()[rows].T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_cold_items_lose_their_residual_and_get_the_bias_of_the_rarest():
    model = towers(N)
    before = model.item.bias.detach().clone()
    count = torch.full((N,), 5)
    count[[2, 7]] = 1
    count[[3, 14]] = 0
    model.settle_cold_items(count)
    vectors = model.item_vectors()
    for cold in (3, 14):
        assert not vectors[cold, 6:-1].any()
        assert vectors[cold, -1] == pytest.approx(float((before[2] + before[7]) / 2))
        assert not model.user.residual[cold].any()
    kept = [row for row in range(N) if row not in (3, 14)]
    assert torch.equal(model.item.bias[kept], before[kept])
    assert model.item.residual[kept].any(dim=1).all()


@pytest.mark.parametrize("count", [0, 1])
def test_where_all_items_are_alike_nothing_is_settled(count):
    model = towers(N)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.settle_cold_items(torch.full((N,), count))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_drops_whole_residuals_at_the_stated_rate_and_never_the_bias():
    model = towers(2000, config=SMALL.model_copy(update={"dropout": 0.0, "residual_dropout": 0.3}))
    model.train()
    torch.manual_seed(0)
    vectors = model.item(model.text, torch.arange(2000)).detach()
    dropped = (vectors[:, 6:-1] == 0).all(dim=1).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.04)
    assert torch.equal(vectors[:, -1], model.item.bias)


def test_saved_and_loaded_weights_give_equal_vectors(tmp_path):
    torch.save(MODEL.state_dict(), tmp_path / "towers.pt")
    other = towers(N)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_state_dict(torch.load(tmp_path / "towers.pt", weights_only=True))
    np.testing.assert_array_equal(other.item_vectors(), MODEL.item_vectors())
    np.testing.assert_array_equal(other.user_vectors(padded([1, 8])), MODEL.user_vectors(padded([1, 8])))
    assert "text" not in MODEL.state_dict()  # the table is an artifact of its own


def test_principal_directions_span_what_a_decomposition_finds():
    text = torch.from_numpy(text_vectors(40) * np.linspace(3, 1, 10, dtype=np.float32))
    found = principal_directions(text, 4)
    _, _, directions = torch.linalg.svd(text, full_matrices=False)
    np.testing.assert_allclose((found @ directions[:4].T).abs().numpy(), np.eye(4), atol=1e-4)


def test_directions_beyond_the_rank_are_small():
    text = torch.from_numpy(text_vectors(40))
    text[:, 3:] = 0  # rank 3
    lengths = principal_directions(text, 14).norm(dim=1)
    assert lengths.shape == (14,)
    np.testing.assert_allclose(lengths[:3], 1, atol=1e-5)
    assert (lengths[3:] < 0.3).all()
