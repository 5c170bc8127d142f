import numpy as np
import pytest
import torch

from data.schema import Histories, Holdout
from retrieval import towers
from retrieval import train as training
from retrieval.distributed import Team
from retrieval.encode import centred
from retrieval.towers import TwoTowers
from retrieval.train import validation_ndcg10
from retrieval.validation import catalog_ndcg10
from store.errors import NotFinite
from tests.retrieval.bag_encoder import bag_reader
from tests.retrieval.lesson import CONFIG, KINDS, TRAIN, VALIDATION, N, fresh, same, sample, trained, weights
from tests.retrieval.toy import SEQUENCE, SMALL, circle, item_texts, nobody, text_vectors

# --- it learns


def test_a_planted_sequence_is_learnt_and_popularity_is_beaten(kind):
    model, log = fresh(kind, epochs=20), []
    record = trained(model, log=log.append)
    found = validation_ndcg10(model, VALIDATION)
    counts = np.bincount(TRAIN.item_rows, minlength=N).astype(np.float32)
    popular = catalog_ndcg10(lambda part: np.tile(counts, (len(part), 1)), VALIDATION, n_items=N)
    assert found > 0.95
    assert popular < 0.5
    assert record.best_ndcg10 == found
    assert record.epochs[-1]["loss"] < 1 < record.epochs[0]["loss"]
    assert log == record.epochs
    assert [entry["epoch"] for entry in log] == list(range(1, len(log) + 1))
    assert {entry["stage"] for entry in log} == {record.name}


@pytest.mark.parametrize("sparse", [False, True])
def test_the_sampled_softmax_learns_the_planted_sequence_too(kind, sparse, monkeypatch):
    sample(monkeypatch, sampled=True)
    model = fresh(kind, epochs=20, sparse=sparse)
    trained(model)
    assert validation_ndcg10(model, VALIDATION) > 0.9


def crossroads(users: int, seed: int) -> tuple[Histories, Holdout]:
    """Planted: 0 leads to 4 after 2, to 5 after 3; 1 the other way round. No sum over items can tell."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(2, 4, users), rng.integers(0, 2, users)
    third = 4 + ((first - 2) ^ second)
    asked = np.stack([first, second], axis=1).tolist()
    known = Histories.of([[*items, after] for items, after in zip(asked, third.tolist(), strict=True)])
    return known, Holdout("validation", np.arange(users), Histories.of(asked), Histories.of(third[:, None].tolist()))


@torch.no_grad()
def right_turns(model: TwoTowers, asked: Holdout) -> float:
    scores = model.user_vectors(asked.histories) @ model.item_vectors()[4:6].T
    return float((scores.argmax(axis=1) + 4 == asked.targets.item_rows).mean())


def test_what_only_the_order_of_items_tells_is_learnt_by_the_sequence_tower_alone():
    train, asked = crossroads(300, seed=0)
    _, others = crossroads(200, seed=1)
    found = {}
    for name, config in KINDS.items():
        plain = {"epochs": 25, "dropout": 0.0, "residual_dropout": 0.0}
        model = fresh(config, 8, **plain, **({"hidden_dropout": 0.0} if name == "sequence" else {}))
        trained(model, train, asked)
        found[name] = right_turns(model, others)
    assert found["sequence"] == 1
    assert found["recency"] < 0.8


def test_identical_texts_are_told_apart_by_their_ids(kind):
    torch.manual_seed(0)
    same_text = torch.from_numpy(centred(np.repeat(text_vectors(1), N, axis=0)))
    model = TwoTowers(same_text, kind.model_copy(update={"epochs": 20}), reader=bag_reader(item_texts(N)))
    trained(model)
    assert validation_ndcg10(model, VALIDATION) > 0.9


# --- the same again


@pytest.mark.parametrize("sparse", [False, True])
def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(kind, sampled, sparse):
    runs = []
    for seed in (5, 5, 6):
        model = fresh(kind, epochs=2, sparse=sparse)
        trained(model, seed=seed)
        runs.append(weights(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# --- what stops it


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    figures, seen = iter([0.2, 0.5, 0.4, 0.3, 0.9]), []

    def planted(model, asked):
        seen.append(weights(model))
        return next(figures)

    monkeypatch.setattr(training, "validation_ndcg10", planted)
    model = fresh(epochs=9)
    record = trained(model, config=CONFIG.model_copy(update={"patience": 2}))
    assert (record.best_epoch, record.best_ndcg10, len(record.epochs)) == (2, 0.5, 4)
    assert "2 epochs" in record.stopped
    assert same(weights(model), seen[1])
    assert not same(weights(model), seen[3])


def test_a_fit_without_validation_repeats_the_weights_of_the_best_epoch(kind, monkeypatch):
    figures = iter([0.2, 0.5, 0.4, 0.3])
    monkeypatch.setattr(training, "validation_ndcg10", lambda *_: next(figures, 0.0))
    first, again = fresh(kind), fresh(kind)
    record = trained(first)
    repeated = trained(again, TRAIN, nobody(), stop_after=record.best_epoch)
    assert record.best_epoch == repeated.best_epoch == len(repeated.epochs) == 2
    assert not any("validation_ndcg@10" in entry for entry in repeated.epochs)
    assert same(weights(first), weights(again))


def test_the_budget_stops_within_an_epoch(monkeypatch):
    steps = []
    step = training._Run._step
    monkeypatch.setattr(training._Run, "_step", lambda run, chosen: steps.append(1) or step(run, chosen))
    record = trained(fresh(epochs=50), budget_minutes=1e-9)
    assert len(steps) == 1
    assert len(record.epochs) == 1
    assert record.stopped == "budget of 1e-09 minutes"
    assert record.minutes >= 0


@pytest.mark.parametrize(("minutes_a_step", "steps"), [(0.0, 72), (0.1, 20), (0.03, 67)])
def test_the_rate_falls_in_time_for_the_end_of_the_budget(monkeypatch, minutes_a_step, steps):
    """By the schedule where time is plenty, by the clock where it is not; never up again after the warm-up."""
    rates = []
    step = training._Run._step

    def counted(run, chosen):
        rates.append(run.state.optimizers[0].param_groups[0]["lr"])
        return step(run, chosen)

    monkeypatch.setattr(training._Run, "_step", counted)
    monkeypatch.setattr(training.TrainingState, "minutes", property(lambda state: len(rates) * minutes_a_step))
    model = fresh(epochs=6)
    trained(model, config=CONFIG.model_copy(update={"patience": 9}), budget_minutes=2.0)
    assert len(rates) <= steps + 1
    assert max(rates) == pytest.approx(model.config.learning_rate, rel=0.05)
    assert rates[-1] < 0.02 * model.config.learning_rate
    assert (np.diff(rates[rates.index(max(rates)) :]) <= 0).all()


def test_a_fit_without_validation_repeats_the_rates_of_one_that_its_budget_hastened(monkeypatch):
    """Be the clock as it may: at the same number of steps it ends at the same share of the schedule."""
    clock, rates = {"minutes": 0.0}, []
    step = training._Run._step

    def ticking(run, chosen):
        clock["minutes"] += clock["a_step"]
        rates[-1].append(run.state.optimizers[0].param_groups[0]["lr"])
        return step(run, chosen)

    monkeypatch.setattr(training._Run, "_step", ticking)
    monkeypatch.setattr(training.TrainingState, "minutes", property(lambda state: clock["minutes"]))

    def fit(asked: Holdout, a_step: float, **more) -> training.TrainRecord:
        clock.update(minutes=0.0, a_step=a_step)
        rates.append([])
        return trained(fresh(epochs=40), TRAIN, asked, budget_minutes=2.0, **more)

    hastened = fit(VALIDATION, 0.045)  # for 44 of 440 steps
    assert hastened.stopped.startswith("budget")
    assert 0.5 < hastened.schedule_share <= 1
    again = fit(nobody(), 0.0, stop_after=hastened.best_epoch, schedule_share=hastened.schedule_share)
    assert again.best_epoch == hastened.best_epoch
    assert rates[1][-1] == pytest.approx(rates[0][len(rates[1]) - 1], rel=0.2, abs=1e-3)
    assert rates[1][-1] < 0.5 * max(rates[1])
    assert fit(VALIDATION, 0.0).schedule_share == 0


def test_the_budget_of_the_config_is_that_of_a_training_without_one_of_its_own():
    record = trained(fresh(epochs=50), config=CONFIG.model_copy(update={"budget_minutes": 1e-9}))
    assert record.stopped == "budget of 1e-09 minutes"


# --- what breaks it


def test_broken_text_vectors_are_named_and_weights_restored(kind):
    model = fresh(kind)
    model.text[3] = torch.inf
    before = weights(model)
    with pytest.raises(NotFinite, match=r"epoch 1, the loss is nan at step \d+ of 1\d: lower .*now 0.02"):
        trained(model)
    assert same(weights(model), before)


@pytest.mark.parametrize("asked", [VALIDATION, nobody()], ids=["validation", "no validation"])
@pytest.mark.parametrize("rate", [1e12, 1e25])
@pytest.mark.parametrize("batch_size", [64, 4096])  # with one step an epoch the first loss is still good
def test_an_absurd_learning_rate_is_named_and_weights_restored(asked, rate, batch_size):
    model = fresh(learning_rate=rate, batch_size=batch_size)
    before = weights(model)
    with pytest.raises(NotFinite, match=r"recency-1 diverged in epoch \d, .*: lower retriever\.recency\.learning_rate"):
        trained(model, TRAIN, asked)
    restored = weights(model)
    assert all(value.isfinite().all() for value in restored.values())
    assert batch_size == 4096 or same(restored, before)


def test_after_good_epochs_a_divergence_leaves_the_best_of_them(kind, monkeypatch):
    step, done, best = training._Run._step, [], {}

    def diverging(run, chosen):
        done.append(1)
        return step(run, chosen) if run.state.epoch < 2 else float("nan")

    def log(entry: dict) -> None:
        best.update(entry if entry["validation_ndcg@10"] > best.get("validation_ndcg@10", -1) else {})

    monkeypatch.setattr(training._Run, "_step", diverging)
    model = fresh(kind, epochs=9)
    with pytest.raises(NotFinite, match=r"diverged in epoch 3, the loss is nan at step 1 of"):
        trained(model, log=log)
    assert validation_ndcg10(model, VALIDATION) == pytest.approx(best["validation_ndcg@10"], abs=1e-5)


# --- small things


def test_cold_items_are_never_pushed_away(kind, sampled):
    some = Histories.of([[0, 1, 2], [2, 1, 0]] * 10)  # items 3 … are never taken
    model = fresh(kind, 8, sparse=sampled)
    trained(model, some, nobody())
    assert not model.item.residual[3:].any()
    if kind is SMALL:
        assert not model.user.residual[3:].any()
    assert torch.allclose(model.item.bias[3:], model.item.bias[:3].mean())


def test_validation_sees_cold_items_as_they_are_served(kind, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "validation_ndcg10", lambda model, _: seen.append(model.item.residual[3:].any().item()) or 0.0
    )
    trained(fresh(kind, 8), Histories.of([[0, 1, 2], [2, 1, 0]] * 10), VALIDATION)
    assert seen == [False] * 4


def test_bfloat16_learns_as_well(kind):
    model = fresh(kind, epochs=20)
    trained(model, config=CONFIG.model_copy(update={"precision": "bfloat16"}))
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert validation_ndcg10(model, VALIDATION) > 0.95


@pytest.mark.parametrize(("epochs", "users"), [(0, 9), (3, 9), (3, 3), (9, 1), (1, 1)])
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 0.5])
def test_any_number_of_steps_can_be_scheduled(kind, epochs, users, warmup_share):
    """A warm-up of one step exactly is what OneCycleLR divides by zero."""
    known, asked = circle(N, users=users, length=3)
    config = CONFIG.model_copy(update={"warmup_share": warmup_share})
    record = trained(fresh(kind, epochs=epochs, batch_size=2), known, asked, config=config)
    assert len(record.epochs) == epochs


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batches_that_are_filled_unevenly_never_outrun_the_schedule(kind, batch_size):
    """Each epoch cuts its batches anew, and windows longer than a batch make their number a matter of luck."""
    rng = np.random.default_rng(0)
    lists = Histories.of([rng.integers(0, N, rng.integers(2, 12)).tolist() for _ in range(60)])
    model = fresh(kind, batch_size=batch_size, epochs=6)
    examples = model.user.examples(lists)
    for seed in range(5):
        (schedule,) = training._begin(model, examples, config=CONFIG, seed=seed).schedules
        orders = [training._order(examples, model, seed=seed, epoch=epoch) for epoch in range(6)]
        assert schedule.total_steps == sum(map(len, orders)) + 1
        assert np.concatenate(orders[0]).tolist() != np.concatenate(orders[1]).tolist()


def test_the_rate_rises_then_falls_to_almost_nothing(kind, monkeypatch):
    step, rates = training._Run._step, []
    monkeypatch.setattr(
        training._Run,
        "_step",
        lambda run, part: rates.append(run.state.optimizers[0].param_groups[0]["lr"]) or step(run, part),
    )
    trained(fresh(kind))
    top = int(np.argmax(rates))
    assert max(rates) == pytest.approx(0.02, rel=0.05)
    assert top / len(rates) == pytest.approx(CONFIG.warmup_share, abs=0.05)
    assert rates[-1] < 0.02 / 100
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_log_without_any_pair_trains_nothing(kind):
    model = fresh(kind)
    record = trained(model, Histories.of([[1], [], [4]]), nobody())
    assert record.epochs == []
    assert (record.best_epoch, record.stopped) == (0, "all epochs")
    assert np.isfinite(model.item_vectors()).all()


def test_a_catalog_of_one_item_trains(kind):
    model = fresh(kind, 1)
    trained(model, Histories.of([[0, 0, 0], [0]]), nobody())
    assert np.isfinite(model.item_vectors()).all()
    assert np.isfinite(model.user_vectors(Histories.of([[0], []]))).all()


def test_lists_longer_than_the_tower_reads_train():
    model = fresh(SEQUENCE, epochs=20)
    trained(model, circle(N, users=40, length=23)[0])
    assert validation_ndcg10(model, VALIDATION) > 0.9


def test_users_are_scored_some_at_a_time(monkeypatch):
    """Activations of all validation users at once would fill the memory."""
    model, sizes = fresh(SEQUENCE, epochs=1), []
    forward = model.user.forward
    monkeypatch.setattr(model.user, "forward", lambda *given: sizes.append(len(given[2])) or forward(*given))
    monkeypatch.setattr(towers, "USERS_AT_ONCE", 40)
    validation_ndcg10(model, VALIDATION)
    assert sizes == [40, 40, 16]


def test_processes_exchange_one_small_message_a_step(monkeypatch, sampled):
    """Beside gradients: a message is a wait for the slowest, whatever its size."""
    messages, plain = [], Team.sum

    def counted(team: Team, values: list[float]) -> list[float]:
        messages.append(len(values))
        return plain(team, values)

    monkeypatch.setattr(Team, "sum", counted)
    model = fresh(epochs=1, batch_size=128, sparse=sampled)  # 6 steps
    trained(model)
    assert messages.count(3) == 6
    assert len(messages) == 6 + 4  # in what arithmetic; are all at the same place; validation; is the budget spent


def test_a_training_that_something_slow_moved_on_may_come_to_the_end_of_its_rates_before_its_budget(monkeypatch):
    """As where mining takes a good part of the minutes, and the steps behind it are quick."""
    monkeypatch.setattr(training._Run, "_clock", lambda self: 0.9)
    model = fresh()
    before = weights(model)
    assert trained(model).best_epoch > 0
    assert not same(before, weights(model))
