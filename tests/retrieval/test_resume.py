"""A training that was killed goes on to the same weights, bit by bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval import train as training
from retrieval.distributed import Team
from retrieval.mining import MiningConfig
from store.checkpoint import CheckpointConfig, Checkpoints
from store.errors import Mismatch, NotFinite
from tests.retrieval.lesson import CONFIG, fresh, same, sample, trained, weights


class Killed(Exception):
    """Stands for a kill."""


def killed_at(condition: Callable[[dict], bool]) -> Callable[[dict], None]:
    def log(entry: dict) -> None:
        if condition(entry):
            raise Killed

    return log


def checkpoints(folder: Path, *, every_minutes: float = 0.0, **belongs_to) -> Checkpoints:
    return Checkpoints(
        folder / "training", {"seed": 0, **belongs_to}, config=CheckpointConfig(every_minutes=every_minutes)
    )


def killed_before_step(number: int) -> Callable[[training._Run, np.ndarray], float]:
    step, done = training._Run._step, []

    def counted(run: training._Run, chosen: np.ndarray) -> float:
        if len(done) == number:
            raise Killed
        done.append(1)
        return step(run, chosen)

    return counted


@pytest.mark.parametrize(
    ("every_minutes", "step", "found"),
    [(999, None, (2, 0)), (0, None, (2, 6)), (0, 8, (2, 2)), (999, 8, (2, 0)), (0, 3, (1, 3)), (999, 3, None)],
    ids=["epochs kept", "steps kept", "within an epoch", "epochs kept, within one", "in the first", "nothing kept"],
)
def test_a_training_goes_on_after_a_kill_as_if_nothing_had_happened(
    kind, sampled, every_minutes, step, found, tmp_path, monkeypatch
):
    pace = {"epochs": 3, "batch_size": 128, "sparse": sampled}  # 6 steps an epoch
    whole, broken = fresh(kind, **pace), fresh(kind, **pace)
    expected = trained(whole)
    kept = {"checkpoints": checkpoints(tmp_path, every_minutes=every_minutes)}
    if step is not None:
        monkeypatch.setattr(training._Run, "_step", killed_before_step(step))
    with pytest.raises(Killed):
        trained(broken, log=killed_at(lambda entry: entry["epoch"] == 2), **kept)
    monkeypatch.undo()
    sample(monkeypatch, sampled=sampled)
    torch.manual_seed(99)  # another process draws from elsewhere
    resumed, log = fresh(kind, **pace, seed=77 if found else 3), []
    record = trained(resumed, checkpoints=checkpoints(tmp_path), log=log.append)
    if found:
        assert (log[0]["event"], log[0]["epoch"], log[0]["step"]) == ("resumed", *found)
    assert same(weights(resumed), weights(whole))
    told = [
        [(entry["epoch"], entry["loss"], entry["validation_ndcg@10"]) for entry in r.epochs] for r in (record, expected)
    ]
    assert told[0] == told[1]
    assert (record.best_epoch, record.best_ndcg10) == (expected.best_epoch, expected.best_ndcg10)


def test_mined_negatives_are_the_same_ones_after_a_kill(kind, tmp_path, monkeypatch):
    """They come from the best epoch, not from the weights at the moment of the kill."""
    sample(monkeypatch, sampled=True)
    config = CONFIG.model_copy(update={"hard_negatives": MiningConfig(per_position=4, first_rank=1, last_rank=12)})
    pace = {"epochs": 3, "batch_size": 128}
    whole, broken, unmined = fresh(kind, **pace), fresh(kind, **pace), fresh(kind, **pace)
    trained(whole, config=config)
    trained(unmined)
    assert not same(weights(unmined), weights(whole))
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_step", killed_before_step(8))
        with pytest.raises(Killed):
            trained(broken, config=config, checkpoints=checkpoints(tmp_path))
    resumed = fresh(kind, **pace, seed=77)
    trained(resumed, config=config, checkpoints=checkpoints(tmp_path))
    assert same(weights(resumed), weights(whole))


def test_a_training_that_had_come_to_its_end_is_not_trained_on(kind, tmp_path, monkeypatch):
    """A kill during the next member: this one had stopped early, and must not take another epoch."""
    figures = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(training, "validation_ndcg10", lambda *_: next(figures))
    config = CONFIG.model_copy(update={"patience": 2})
    first = fresh(kind, epochs=9)
    record = trained(first, config=config, checkpoints=checkpoints(tmp_path))
    again = fresh(kind, epochs=9, seed=8)
    repeated = trained(again, config=config, checkpoints=checkpoints(tmp_path))
    assert len(record.epochs) == len(repeated.epochs) == 3
    assert repeated.stopped == record.stopped == "no better validation NDCG@10 for 2 epochs"
    assert same(weights(first), weights(again))


def test_another_config_or_another_model_is_refused_by_name(tmp_path):
    with pytest.raises(Killed):
        trained(fresh(), checkpoints=checkpoints(tmp_path), log=killed_at(lambda entry: entry["epoch"] == 2))
    with pytest.raises(Mismatch, match="seed 0 → 1"):
        trained(fresh(), checkpoints=checkpoints(tmp_path, seed=1))
    with pytest.raises(Mismatch, match="training of another model"):
        trained(fresh(residual_dim=4), checkpoints=checkpoints(tmp_path))


def test_a_divergence_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    step = training._Run._step
    monkeypatch.setattr(
        training._Run, "_step", lambda run, part: step(run, part) if run.state.epoch < 2 else float("inf")
    )
    with pytest.raises(NotFinite):
        trained(fresh(), checkpoints=checkpoints(tmp_path))
    monkeypatch.undo()
    whole, resumed, log = fresh(), fresh(seed=8), []
    trained(whole)
    trained(resumed, checkpoints=checkpoints(tmp_path), log=log.append)
    assert (log[0]["event"], log[0]["epoch"]) == ("resumed", 3)
    assert same(weights(resumed), weights(whole))


def test_processes_that_go_on_from_different_places_are_told(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Team, "check_same", lambda team, value, what: asked.append((value, what)))
    with pytest.raises(Killed):
        trained(fresh(), checkpoints=checkpoints(tmp_path), log=killed_at(lambda entry: entry["epoch"] == 2))
    trained(fresh(), checkpoints=checkpoints(tmp_path))
    places = [value for value, what in asked if what == "unfinished training"]
    assert places[0] == {"epoch": 0, "step": 0}
    assert places[1]["epoch"] > 0
