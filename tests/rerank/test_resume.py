"""A training that was killed ends as it would have ended, and one that had ended is not done again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rerank import train
from rerank.adapters import AdapterConfig, AdapterKind
from rerank.encoder import EncoderReranker
from rerank.train import StopReason, train_reranker
from store.checkpoint import CheckpointConfig, Checkpoints
from store.errors import Mismatch
from tests.rerank.test_train import FAST, partner_rule, quiet
from tests.rerank.tiny_bert import CONFIG, untrained


class Killed(Exception):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The process ends while it computes the step after so many."""
    true_step, made = train._Training._step, []

    def step(run: Any, places: Any) -> bool:
        made.append(1)
        if len(made) > steps:
            raise Killed
        return true_step(run, places)

    monkeypatch.setattr(train._Training, "_step", step)


ADAPTERS = [AdapterConfig(rank=4, dropout=0.2), AdapterConfig(kind=AdapterKind.ADALORA, rank=4)]


# In the middle of the second epoch, and where AdaLoRA's ranks are final.
@pytest.mark.parametrize("steps", [13, 18])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda config: config.kind.value)
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: AdapterConfig, steps: int
) -> None:
    shape = CONFIG.model_copy(update={"adapter": adapter})
    config = FAST.model_copy(update={"epochs": 2})

    def run(checkpoints: Checkpoints | None) -> tuple[EncoderReranker, Any, list[Any]]:
        reranker, log = untrained(tiny_bert, config=shape), []
        record = train_reranker(
            reranker,
            partner_rule(40, seed=0),
            validation=partner_rule(12, seed=9),
            config=config,
            log=log.append,
            checkpoints=checkpoints,
        )
        return reranker, record, log

    whole, record, _ = run(None)
    kept = Checkpoints(tmp_path / "kept", {"seed": 0}, config=CheckpointConfig(every_minutes=0))
    with monkeypatch.context() as patch:
        killed_after(patch, steps)
        with pytest.raises(Killed):
            run(kept)
    torch.manual_seed(99)
    resumed, again, log = run(kept)
    assert log[0] == {"event": "resumed", "step": steps}
    assert again.losses == record.losses
    assert (again.best, again.best_step, again.before) == (record.best, record.best_step, record.before)
    assert all(torch.equal(value, resumed.trainable()[name]) for name, value in whole.trainable().items())

    # One that had ended is not done again.
    third, last, log = run(kept)
    assert [entry["event"] for entry in log] == ["resumed", "end"]
    assert last.losses == record.losses
    assert all(torch.equal(value, third.trainable()[name]) for name, value in whole.trainable().items())


def test_minutes_before_a_kill_count_and_other_settings_are_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(seed: int = 0) -> Any:
        kept = Checkpoints(tmp_path / "kept", {"reranker.train.seed": seed}, config=CheckpointConfig(every_minutes=0))
        return train_reranker(
            untrained(tiny_bert),
            partner_rule(40, seed=0),
            validation=None,
            config=FAST.model_copy(update={"epochs": 50, "budget_minutes": 1}),
            log=quiet,
            checkpoints=kept,
        )

    now = [0.0]

    def passing() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(train.time, "monotonic", passing)
    with monkeypatch.context() as patch:
        killed_after(patch, 5)
        with pytest.raises(Killed):
            run()
    now[0] = 1e6
    with pytest.raises(Mismatch, match=r"reranker\.train\.seed 0 → 1"):
        run(seed=1)
    record = run()
    assert record.stop is StopReason.BUDGET
    assert record.minutes < 1.2
