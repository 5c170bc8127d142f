import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Histories
from retrieval import train as training
from retrieval.encode import centred
from retrieval.loss import full_softmax_loss
from retrieval.towers import TwoTowers
from retrieval.train import NotFinite, Positions, TrainConfig, train_towers, validation_ndcg10
from retrieval.validation import next_item_ndcg10
from tests.retrieval.toy import SMALL, circle, nobody, text_vectors, towers

N = 24
TRAIN, VALIDATION = circle(N, users=96)
CONFIG = TrainConfig(epochs=4, batch_size=64, learning_rate=0.02, patience=9)


def fresh(n_items: int = N) -> TwoTowers:
    torch.manual_seed(3)
    return TwoTowers(torch.from_numpy(centred(text_vectors(n_items))), SMALL)


def silent(_: dict) -> None:
    pass


def weights(model: TwoTowers) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_positions_equal_a_plain_loop(lists, history_items):
    contexts, targets = [], []
    for items in lists:
        for place in range(1, len(items)):
            before = items[:place][::-1][:history_items]
            contexts.append(before + [NO_ITEM] * (history_items - len(before)))
            targets.append(items[place])
    found = Positions.of(Histories.of(lists), history_items)
    assert len(found) == len(targets)
    assert found.target.tolist() == targets
    assert found.context.tolist() == contexts
    assert found.context.shape == (len(targets), history_items)


def test_a_planted_sequence_is_learnt_and_popularity_is_beaten():
    model, log = fresh(), []
    record = train_towers(model, TRAIN, VALIDATION, config=CONFIG.model_copy(update={"epochs": 20}), log=log.append)
    found = validation_ndcg10(model, VALIDATION)
    counts = np.bincount(TRAIN.item_rows, minlength=N).astype(np.float32)
    popular = next_item_ndcg10(lambda part: np.tile(counts, (len(part), 1)), VALIDATION, n_items=N)
    assert found > 0.95
    assert popular < 0.5
    assert record.best_ndcg10 == found
    assert record.epochs[-1]["loss"] < 1 < record.epochs[0]["loss"]
    assert log == record.epochs


@pytest.mark.parametrize("sampled", [False, True])
def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(training, "FULL_SOFTMAX_ITEMS", 0)
    runs = []
    for seed in (5, 5, 6):
        model = fresh()
        config = CONFIG.model_copy(update={"seed": seed, "sampled_items": 16, "epochs": 2})
        train_towers(model, TRAIN, VALIDATION, config=config, log=silent)
        runs.append(weights(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_sampled_softmax_learns_the_planted_sequence_too(monkeypatch):
    monkeypatch.setattr(training, "FULL_SOFTMAX_ITEMS", 0)
    model = fresh()
    config = CONFIG.model_copy(update={"epochs": 20, "sampled_items": 16})
    train_towers(model, TRAIN, VALIDATION, config=config, log=silent)
    assert validation_ndcg10(model, VALIDATION) > 0.9


def test_the_sampled_objective_estimates_the_sum_of_the_full_one(monkeypatch):
    """Also that the share by which an item is drawn and the share by which it is corrected are the same."""
    model = towers(N)
    model.eval()
    counts = np.arange(N)[::-1] ** 2  # item N - 1 is cold, item 0 is taken most
    context, target = np.array([[3, 8, NO_ITEM, NO_ITEM]], dtype=np.int32), np.array([5])
    with torch.no_grad():
        model.item.residual *= 0.3  # milder logits: less variance
        model.user.log_text_scale.fill_(0.0)
        logits = model.logits(torch.from_numpy(context.astype(np.int64)), torch.arange(N - 1))
        full = full_softmax_loss(logits, torch.from_numpy(target)).exp().item()
        monkeypatch.setattr(training, "FULL_SOFTMAX_ITEMS", 0)
        config = TrainConfig(sampled_items=64)
        objective = training._Objective(model, counts, config, np.random.default_rng(0))
        estimates = [objective(context, target).exp().item() for _ in range(600)]
    assert np.mean(estimates) == pytest.approx(full, rel=4 * np.std(estimates) / np.sqrt(600) / full)
    assert np.std(estimates) / np.sqrt(600) < 0.04 * full


def test_cold_items_are_never_pushed_away():
    some = Histories.of([[0, 1, 2], [2, 1, 0]] * 10)  # items 3 … are never taken
    model = fresh(8)
    train_towers(model, some, nobody(), config=CONFIG, log=silent)
    assert not model.item.residual[3:].any()
    assert not model.user.residual[3:].any()
    rarest = model.item.bias[:3]
    assert torch.allclose(model.item.bias[3:], rarest.mean())


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    figures, seen = iter([0.2, 0.5, 0.4, 0.3, 0.9]), []

    def planted(model, asked):
        seen.append(weights(model))
        return next(figures)

    monkeypatch.setattr(training, "validation_ndcg10", planted)
    model = fresh()
    config = CONFIG.model_copy(update={"patience": 2, "epochs": 9})
    record = train_towers(model, TRAIN, VALIDATION, config=config, log=silent)
    assert (record.best_epoch, record.best_ndcg10, len(record.epochs)) == (2, 0.5, 4)
    assert "2 epochs" in record.stopped
    assert same(weights(model), seen[1])
    assert not same(weights(model), seen[3])


def test_a_fit_without_validation_repeats_the_weights_of_the_best_epoch(monkeypatch):
    figures = iter([0.2, 0.5, 0.4, 0.3])
    monkeypatch.setattr(training, "validation_ndcg10", lambda *_: next(figures, 0.0))
    first, again = fresh(), fresh()
    record = train_towers(first, TRAIN, VALIDATION, config=CONFIG, log=silent)
    repeated = train_towers(again, TRAIN, nobody(), config=CONFIG, log=silent, stop_after=record.best_epoch)
    assert record.best_epoch == repeated.best_epoch == len(repeated.epochs) == 2
    assert same(weights(first), weights(again))


def test_only_some_validation_users_are_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "validation_ndcg10", lambda _, holdout: asked.append(holdout) or 0.0)
    config = CONFIG.model_copy(update={"epochs": 1, "validation_users": 7})
    train_towers(fresh(), TRAIN, VALIDATION, config=config, log=silent)
    assert len(asked[0]) == len(set(asked[0].user_rows)) == 7


def test_broken_text_vectors_are_named_and_weights_restored():
    model = fresh()
    model.text[3] = torch.inf
    before = weights(model)
    with pytest.raises(NotFinite, match=r"epoch 1, the loss is nan at step \d+ of 11: lower .*now 0.02"):
        train_towers(model, TRAIN, VALIDATION, config=CONFIG, log=silent)
    assert same(weights(model), before)


@pytest.mark.parametrize("asked", [VALIDATION, nobody()], ids=["validation", "no validation"])
@pytest.mark.parametrize("rate", [1e12, 1e25])
@pytest.mark.parametrize("batch_size", [64, 4096])  # with one step an epoch the first loss is still good
def test_an_absurd_learning_rate_is_named_and_weights_restored(asked, rate, batch_size):
    model = fresh()
    before = weights(model)
    config = CONFIG.model_copy(update={"learning_rate": rate, "batch_size": batch_size})
    with pytest.raises(NotFinite, match=r"lower retriever\.train.learning_rate"):
        train_towers(model, TRAIN, asked, config=config, log=silent)
    restored = weights(model)
    assert all(value.isfinite().all() for value in restored.values())
    assert batch_size == 4096 or same(restored, before)


def test_the_budget_stops_within_an_epoch():
    steps = []
    model = fresh()
    config = CONFIG.model_copy(update={"budget_minutes": 1e-9, "epochs": 50})
    real = model.logits
    model.logits = lambda *given: steps.append(1) or real(*given)  # type: ignore[method-assign]
    record = train_towers(model, TRAIN, VALIDATION, config=config, log=silent)
    assert len(steps) == 1
    assert len(record.epochs) == 1
    assert record.stopped == "budget of 1e-09 minutes"


@pytest.mark.parametrize(("epochs", "users"), [(0, 9), (3, 9), (3, 3), (9, 1), (1, 1)])
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 0.5])
def test_any_number_of_steps_can_be_scheduled(epochs, users, warmup_share):
    """9 steps and a warm-up of a tenth of 10: one step exactly, which OneCycleLR divides by zero."""
    known, asked = circle(N, users=users, length=3)
    config = CONFIG.model_copy(update={"epochs": epochs, "batch_size": 2, "warmup_share": warmup_share})
    record = train_towers(fresh(), known, asked, config=config, log=silent)
    assert len(record.epochs) == epochs


def test_a_log_without_any_pair_trains_nothing():
    model = fresh()
    record = train_towers(model, Histories.of([[1], [], [4]]), nobody(), config=CONFIG, log=silent)
    assert record.epochs == []
    assert record.best_epoch == 0
    assert np.isfinite(model.item_vectors()).all()
