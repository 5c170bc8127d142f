import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.schema import NO_ITEM, Histories
from retrieval import towers as module
from retrieval.encode import centred
from retrieval.item_tower import Join, principal_directions
from retrieval.towers import SequenceConfig, TowerConfig, TwoTowers
from tests.retrieval.bag_encoder import bag_reader, vectors_of
from tests.retrieval.toy import SEQUENCE, SMALL, WORDED, item_texts, text_vectors, towers

N = 15
KINDS = {"recency": SMALL, "sequence": SEQUENCE, "text": WORDED}
MODELS = {kind: towers(N, config=config) for kind, config in KINDS.items()}
RECENCY = MODELS["recency"]
HISTORIES = st.lists(st.integers(0, N - 1), max_size=9)


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> TwoTowers:
    return MODELS[request.param]


def user_vector(model: TwoTowers, items: list[int]) -> np.ndarray:
    return model.user_vectors(Histories.of([items]))[0]


def at_rows(model: TwoTowers, rows: list[list[int]]) -> np.ndarray:
    """User vectors from (B, H) rows, most recent first, past the cutting and sorting of `user_vectors`."""
    model.eval()
    with torch.no_grad():
        return model.user.forward(model.item, model.text, torch.tensor(rows, dtype=torch.int64)).numpy()


# --- items


def test_an_item_is_mapped_text_residual_and_bias():
    items, users = RECENCY.item_vectors(), RECENCY.user_vectors(Histories.of([[1, 2]]))
    assert items.shape == (N, 6 + 8 + 1)
    assert users.shape == (1, 15)
    assert items.dtype == users.dtype == np.float32
    np.testing.assert_array_equal(items[:, -1:], RECENCY.item.bias.detach().numpy())
    np.testing.assert_array_equal(items[:, 6:-1], RECENCY.item.residual.detach().numpy())
    mapped = RECENCY.text.numpy() @ RECENCY.item.text_map.weight.detach().numpy().T
    np.testing.assert_allclose(items[:, :6], mapped, rtol=1e-4, atol=1e-6)
    assert users[0, -1] == 1


def test_joined_by_sum_text_and_residual_share_their_dimensions():
    model = MODELS["sequence"]
    mapped = model.text.numpy() @ model.item.text_map.weight.detach().numpy().T
    expected = np.hstack([mapped + model.item.residual.detach().numpy(), model.item.bias.detach().numpy()])
    np.testing.assert_allclose(model.item_vectors(), expected, rtol=1e-4, atol=1e-6)
    assert model.item.dimension == 8 + 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("join", Join)
@pytest.mark.parametrize(("text_dim", "residual_dim"), [(8, 0), (0, 8), (8, 8)])
def test_text_alone_ids_alone_and_both(kind, join, text_dim, residual_dim):
    config = kind.model_copy(update={"join": join, "text_dim": text_dim, "residual_dim": residual_dim})
    model = towers(N, config=config)
    width = 16 if join is Join.BESIDE and text_dim and residual_dim else 8
    assert config.width == model.item.dimension - 1 == width
    assert model.item_vectors().shape == (N, width + 1)
    vector = user_vector(model, [3, 1])
    assert vector.shape == (width + 1,)
    assert np.isfinite(vector).all()


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


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("texts", ["one item", "identical"])
def test_one_item_and_identical_texts_have_finite_vectors(config, texts):
    raw = text_vectors(1) if texts == "one item" else np.repeat(text_vectors(1), 7, axis=0)
    reader = bag_reader(["one text"] * len(raw))
    model = TwoTowers(torch.from_numpy(centred(raw)), config, reader=reader)
    assert np.isfinite(model.item_vectors()).all()
    assert np.isfinite(model.user_vectors(Histories.of([[0], [], [len(raw) - 1, 0]]))).all()


# --- users


def test_the_recency_vector_by_hand():
    rows, user = [4, 9, 4], RECENCY.user  # oldest first
    decay = 0.7 ** np.arange(3)
    weight = decay[::-1] / np.linalg.norm(decay)
    mapped = RECENCY.text.numpy()[rows] @ user.text_map.weight.detach().numpy().T
    expected = np.concatenate([10 * weight @ mapped, weight @ user.residual.detach().numpy()[rows], [1]])
    np.testing.assert_allclose(user_vector(RECENCY, rows), expected, rtol=1e-4, atol=1e-5)


def test_the_text_vector_by_hand():
    rows, user = [4, 9, 4], MODELS["text"].user  # oldest first
    texts = [item_texts(N)[row] for row in reversed(rows)]
    mean = vectors_of(item_texts(N)).mean(axis=0)
    read = centred(vectors_of(["; ".join(texts)]), mean).astype(np.float16).astype(np.float32)[0]
    expected = 10 * user.text_map.weight.detach().numpy() @ read + user.offset.detach().numpy()
    np.testing.assert_allclose(user_vector(MODELS["text"], rows), [*expected, 1], rtol=1e-4, atol=1e-5)


def test_a_text_tower_learns_from_the_last_places_of_each_history_and_no_more_than_it_may():
    train = Histories.of([[1, 2, 3, 4], [5], [6, 7]])
    for last, most, expected in ((2, 99, [3, 4, 7]), (1, 99, [4, 7]), (9, 99, [2, 3, 4, 7]), (9, 2, None)):
        config = WORDED.model_copy(update={"positions_per_user": last, "most_positions": most})
        found = towers(N, config=config).user.examples(train)
        assert len(found) == len(found.targets) == (most if expected is None else len(expected))
        assert expected is None or found.targets.tolist() == expected
    whole_model = MODELS["text"]
    whole = whole_model.user
    examples = whole.examples(train)
    inputs, targets = examples.batch(np.array([2, 3]))
    assert targets.tolist() == [4, 7]
    with torch.no_grad():
        found = whole.vectors_at(whole_model.item, whole_model.text, inputs).numpy()
    expected = [user_vector(whole_model, [1, 2, 3]), user_vector(whole_model, [6])]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_text_tower_without_a_reader_is_refused():
    with pytest.raises(ValueError, match="needs a reader"):
        TwoTowers(torch.zeros(3, 4), WORDED)


@given(st.sampled_from(list(MODELS)), st.lists(st.integers(0, N - 1), max_size=4))
@settings(max_examples=40)
def test_padding_has_no_influence(kind, items):
    """Nor what stands at row 0, where padding is read."""
    newest_first = items[::-1] or [NO_ITEM]
    expected = at_rows(MODELS[kind], [newest_first])
    width = MODELS[kind].user.history_items
    padded = newest_first + [NO_ITEM] * (width - len(newest_first))
    np.testing.assert_allclose(at_rows(MODELS[kind], [padded]), expected, rtol=1e-5, atol=1e-6)
    other = towers(N, config=KINDS[kind])
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith("residual"):
                weight[0] = 1e4
        other.text = other.text.clone()
        other.text[0] = 1e4
    if 0 not in items:
        np.testing.assert_allclose(at_rows(other, [padded]), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_history_is_worth_the_biases_alone(model):
    assert user_vector(model, []).tolist() == [0.0] * (model.item.dimension - 1) + [1.0]


def test_only_the_last_items_are_read(model):
    longest = model.user.history_items
    tail = list(range(longest))
    np.testing.assert_array_equal(user_vector(model, [14, 13, *tail]), user_vector(model, [9, *tail]))
    assert not np.allclose(user_vector(model, [14, *tail[1:]]), user_vector(model, tail))


def test_a_user_has_the_same_vector_alone_as_among_others(model, monkeypatch):
    rng = np.random.default_rng(0)
    histories = Histories.of([rng.integers(0, N, rng.integers(0, 9)).tolist() for _ in range(40)])
    together = model.user_vectors(histories)
    alone = np.concatenate([model.user_vectors(histories.take(np.array([user]))) for user in range(40)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "USERS_AT_ONCE", 7)
    np.testing.assert_allclose(model.user_vectors(histories), together, rtol=1e-4, atol=1e-5)


def test_nobody_has_no_vectors(model):
    assert model.user_vectors(Histories.of([])).shape == (0, model.item.dimension)
    assert model.user_vectors(Histories.of([[], []]))[:, -1].tolist() == [1, 1]


def test_looking_up_vectors_ends_training_mode_and_draws_nothing(model):
    model.train()
    before = torch.get_rng_state()
    one, two = user_vector(model, [1, 2, 3]), user_vector(model, [1, 2, 3])
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


# --- cold items


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_cold_items_lose_their_residual_and_get_the_bias_of_the_rarest(config):
    model = towers(N, config=config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = np.full(N, 5)
    count[[2, 7]] = 1
    count[[3, 14]] = 0
    model.settle_cold_items(count)
    vectors, bias = model.item_vectors(), before["item.bias"]
    mapped = model.text.numpy() @ model.item.text_map.weight.detach().numpy().T
    for cold in (3, 14):
        assert not model.item.residual[cold].any()
        np.testing.assert_allclose(vectors[cold, : mapped.shape[1]], mapped[cold], rtol=1e-4, atol=1e-6)
        assert vectors[cold, -1] == pytest.approx(float((bias[2] + bias[7]) / 2))
        if config is SMALL:
            assert not model.user.residual[cold].any()
    kept = [row for row in range(N) if row not in (3, 14)]
    for name, value in model.state_dict().items():
        untouched = kept if name.endswith(("residual", "item.bias")) else ...
        assert torch.equal(value[untouched], before[name][untouched]), name


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_cold_items_with_stand_ins_get_the_weighted_sum_of_their_residuals(config):
    model = towers(N, config=config)
    before = model.item.residual.detach().clone().numpy()
    stand_ins = sp.lil_matrix((N, N), dtype=np.float32)
    stand_ins[3, 5], stand_ins[3, 8] = 0.25, 0.75
    count = np.full(N, 5)
    count[[3, 14]] = 0
    for _ in range(2):  # settling again changes nothing
        model.settle_cold_items(count, stand_ins.tocsr())
        found = model.item.residual.detach().numpy()
        np.testing.assert_allclose(found[3], 0.25 * before[5] + 0.75 * before[8], rtol=1e-5)
        assert not found[14].any()


@pytest.mark.parametrize("count", [0, 1])
def test_where_all_items_are_alike_nothing_is_settled(count):
    model = towers(N)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.settle_cold_items(np.full(N, count))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- training mode


def test_training_drops_whole_residuals_at_the_stated_rate_and_never_the_bias():
    model = towers(2000, config=SMALL.model_copy(update={"dropout": 0.0, "residual_dropout": 0.3}))
    model.train()
    torch.manual_seed(0)
    vectors = model.item(model.text, torch.arange(2000)).detach()
    dropped = (vectors[:, 6:-1] == 0).all(dim=1).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.04)
    assert torch.equal(vectors[:, -1:], model.item.bias)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_sparse_gradients_hold_what_dense_ones_do(config):
    """Those of the rows that a step meets, and 0 elsewhere; no dropout, so that both see the same."""
    plain = config.model_copy(update={"dropout": 0.0, "residual_dropout": 0.0})
    plain = plain.model_copy(update={"hidden_dropout": 0.0}) if config is SEQUENCE else plain
    text = torch.from_numpy(centred(text_vectors(N)))
    gradients = []
    for sparse in (False, True):
        torch.manual_seed(1)
        model = TwoTowers(text, plain, sparse=sparse, reader=bag_reader(item_texts(N)))
        model.train()
        users = model.user.forward(model.item, model.text, torch.tensor([[3, 5, NO_ITEM], [5, 8, 3]]))
        (users @ model.item_vectors_at(torch.tensor([1, 5, 5])).T).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        expected = ["item.residual", "item.bias"] + (["user.residual"] if config is SMALL else [])
        assert [name for name, grad in gradients[-1].items() if grad.is_sparse] == (expected if sparse else [])
        sparse_names = [
            name for name, weight in model.named_parameters() for w in model.sparse_weights() if weight is w
        ]
        assert sparse_names == (expected if sparse else [])
    for name, dense in gradients[0].items():
        found = gradients[1][name]
        np.testing.assert_allclose(found.to_dense() if found.is_sparse else found, dense, rtol=1e-4, atol=1e-6)


# --- files and settings


def test_loaded_weights_give_equal_vectors(model):
    torch.manual_seed(8)
    other = TwoTowers(model.text, model.config, reader=bag_reader(item_texts(N)))
    assert not np.array_equal(other.item_vectors(), model.item_vectors())
    other.load_state_dict(model.state_dict())
    assert "text" not in model.state_dict()  # the table is an artifact of its own
    asked = Histories.of([[1, 8, 2], []])
    np.testing.assert_array_equal(other.item_vectors(), model.item_vectors())
    np.testing.assert_array_equal(other.user_vectors(asked), model.user_vectors(asked))


@pytest.mark.parametrize(
    ("kind", "settings_", "message"),
    [
        (TowerConfig, {"text_dim": 0, "residual_dim": 0}, "an item would have no vector"),
        (TowerConfig, {"join": "sum", "text_dim": 4, "residual_dim": 6}, "found 4 and 6"),
        (SequenceConfig, {"text_dim": 10, "residual_dim": 10, "heads": 3}, "10 dimensions.*twice the 3 heads"),
        (SequenceConfig, {"join": "beside", "text_dim": 1, "residual_dim": 2, "heads": 1}, "3 dimensions"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind, settings_, message):
    with pytest.raises(ValidationError, match=message):
        kind(**settings_)


@pytest.mark.parametrize(("times", "dropout"), [(99, 0.4), (100, 0.2)])
def test_unset_dropout_follows_the_interactions_of_an_item(times, dropout):
    log = Histories.of([[1, 2, 3]] * times)
    assert SequenceConfig().suited(log).hidden_dropout == dropout
    assert SequenceConfig(hidden_dropout=0.3).suited(log).hidden_dropout == 0.3
    assert SequenceConfig().suited(Histories.of([])).hidden_dropout == 0.4
