import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.schema import NO_ITEM
from retrieval import objective as module
from retrieval.objective import Objective, Softmax, samples_softmax
from tests.retrieval.toy import towers

N = 24
COUNTS = np.arange(N)[::-1] ** 2  # item N - 1 is cold, item 0 is taken most
WARM = np.arange(N - 1)
TARGETS = torch.tensor([5, 0, 22, 5])


@pytest.fixture
def always_sampled(monkeypatch):
    monkeypatch.setattr(module, "FULL_SOFTMAX_ITEMS", 0)


def model_and_users(positions: int = 4) -> tuple:
    model = towers(N)
    model.eval()
    with torch.no_grad():
        model.item.residual *= 0.5  # milder scores: less variance
    users = torch.randn(positions, model.item.dimension, generator=torch.Generator().manual_seed(1)) * 0.7
    return model, users


def objective(model, *, sampled_items: int = 64, low_precision: bool = False) -> Objective:
    return Objective(model, COUNTS, sampled_items=sampled_items, low_precision=low_precision)


def full_loss(model, users, targets=TARGETS) -> torch.Tensor:
    """Softmax over the warm items, written out."""
    scores = users @ torch.from_numpy(model.item_vectors()[:-1]).T
    return (scores.exp().sum(dim=1).log() - scores[torch.arange(len(users)), targets]).mean()


def test_the_softmax_runs_over_all_items_that_were_ever_taken():
    model, users = model_and_users()
    found = objective(model)(users, TARGETS, np.random.default_rng(0))
    torch.testing.assert_close(found, full_loss(model, users), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_labels_are_smoothed_and_scores_divided_as_the_towers_say(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(module, "FULL_SOFTMAX_ITEMS", 0)
    model, users = model_and_users()
    model.config = model.config.model_copy(update={"label_smoothing": 0.2, "temperature": 2.5})
    scores = users @ torch.from_numpy(model.item_vectors()[:-1]).T / 2.5
    expected = F.cross_entropy(scores, TARGETS, label_smoothing=0.2)
    found = objective(model, sampled_items=200_000)(users, TARGETS, np.random.default_rng(0))
    torch.testing.assert_close(found, expected, rtol=0.02 if sampled else 1e-4, atol=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_an_item_never_taken_is_never_pushed_away(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(module, "FULL_SOFTMAX_ITEMS", 0)
    model, users = model_and_users()
    objective(model, sampled_items=500)(users, TARGETS, np.random.default_rng(0)).backward()
    for gradient in (model.item.residual.grad, model.item.bias.grad):
        assert not gradient[N - 1].any()
        assert gradient[:-1].any(dim=1).all()


def test_places_among_the_warm_items_skip_the_cold_ones():
    """With cold items in the middle of the catalog the target is still the target."""
    model, users = model_and_users()
    counts = np.ones(N, dtype=np.int64)
    counts[[0, 3, 10]] = 0
    scores = users @ torch.from_numpy(model.item_vectors()[counts > 0]).T
    place = torch.tensor([5 - 2, 22 - 3])
    expected = F.cross_entropy(scores[:2], place)
    found = Objective(model, counts, sampled_items=1, low_precision=False)(
        users[:2], torch.tensor([5, 22]), np.random.default_rng(0)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("always_sampled")
@pytest.mark.parametrize("mined", [None, [[1, 7, NO_ITEM]]], ids=["drawn", "drawn and mined"])
def test_a_sample_estimates_the_sum_of_all(mined):
    """Also that the share by which an item is drawn and the share by which it is corrected are the same."""
    model, users = model_and_users(1)
    target, rng = torch.tensor([5]), np.random.default_rng(0)
    rows = None if mined is None else np.array(mined)
    with torch.no_grad():
        full = full_loss(model, users, target).exp().item()
        found = objective(model)
        estimates = [found(users, target, rng, rows).exp().item() for _ in range(600)]
    error = np.std(estimates) / np.sqrt(600)
    assert np.mean(estimates) == pytest.approx(full, abs=4 * error)
    assert error < 0.04 * full


@pytest.mark.usefixtures("always_sampled")
def test_a_large_sample_has_the_gradient_of_the_full_softmax():
    model, users = model_and_users(3)
    expected = torch.autograd.grad(
        F.cross_entropy(users @ model.item_vectors_at(torch.from_numpy(WARM)).T, TARGETS[:3]), model.item.residual
    )[0]
    loss = objective(model, sampled_items=200_000)(users, TARGETS[:3], np.random.default_rng(0))
    found = torch.autograd.grad(loss, model.item.residual)[0]
    np.testing.assert_allclose(found, expected, atol=0.02 * float(expected.abs().max()))


@pytest.mark.usefixtures("always_sampled")
def test_the_sample_is_drawn_by_the_generator_that_is_given():
    model, users = model_and_users()
    found = objective(model, sampled_items=5)
    losses = [found(users, TARGETS, np.random.default_rng(seed)).item() for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("sampled", [False, True])
def test_bfloat16_changes_the_loss_a_little(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(module, "FULL_SOFTMAX_ITEMS", 0)
    model, users = model_and_users()
    exact, rough = (
        objective(model, low_precision=low)(users, TARGETS, np.random.default_rng(0)) for low in (False, True)
    )
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()


def test_items_that_were_taken_decide_whether_a_catalog_is_large(monkeypatch):
    monkeypatch.setattr(module, "FULL_SOFTMAX_ITEMS", 3)
    assert not samples_softmax(np.array([1, 0, 9, 2, 0]))
    assert samples_softmax(np.array([1, 1, 9, 2, 0]))
    assert samples_softmax(np.array([1]), Softmax.SAMPLED)
    assert not samples_softmax(np.array([1, 1, 9, 2, 0]), Softmax.FULL)


def test_positions_that_share_their_targets_hardly_need_a_sample():
    """Positions lead to items as often as they are taken, and each batch is a part of them."""
    model, users = model_and_users(400)
    rng = np.random.default_rng(0)
    counts = np.where(COUNTS > 0, 60 + np.arange(N), 0)  # nothing rare: a sum without it would be too small
    every_target = np.repeat(np.arange(N), counts)
    losses: dict[str, list[float]] = {"full": [], "shared": [], "one drawn": []}
    sampled = {"sampled_items": 1, "low_precision": False, "softmax": Softmax.SAMPLED}
    shared, one_drawn = (Objective(model, counts, **sampled, target_counts=targets) for targets in (counts, None))
    with torch.no_grad():
        for _ in range(50):
            targets = torch.from_numpy(rng.choice(every_target, len(users), replace=False))
            losses["full"].append(full_loss(model, users, targets).item())
            losses["shared"].append(shared(users, targets, rng).item())
            losses["one drawn"].append(one_drawn(users, targets, rng).item())
    full, found, without = (np.mean(values) for values in losses.values())
    assert found == pytest.approx(full, abs=0.03)
    assert abs(without - full) > 0.3
