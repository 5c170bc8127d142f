"""Killed trainings of a small real model. Run as a script, this file is the process that is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retrieval.training_state import TrainingState
from store.checkpoint import CheckpointConfig, Checkpoints, differences
from store.errors import CorruptArtifact, Mismatch, NoSpace

ROOT = Path(__file__).parents[2]
ITEMS, POSITIONS, BATCH, EPOCHS = 20, 90, 16, 4
STEPS = -(-POSITIONS // BATCH)
BELONGS_TO = {"retriever": {"train": {"learning_rate": 0.02, "epochs": EPOCHS}}, "dataset": "12ab"}
EVERY_STEP, EPOCH_ENDS = CheckpointConfig(every_minutes=0), CheckpointConfig(every_minutes=1e6)


class Toy(nn.Module):
    """Predicts an item from another one; with all that must survive: dropout, a sparse table, a tied weight."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, width, sparse=True)
        self.inner = nn.Linear(width, width)
        self.again = self.inner
        self.out = nn.Linear(width, ITEMS)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(torch.tanh(self.inner(self.table(items))), 0.3, self.training)
        return self.out(self.again(hidden))


def fresh(width: int = 6) -> TrainingState:
    torch.manual_seed(7)
    model = Toy(width)
    dense = [weight for name, weight in model.named_parameters() if not name.startswith("table")]
    optimizers = [
        torch.optim.AdamW(dense, lr=0.02, weight_decay=0.01),
        torch.optim.SparseAdam(model.table.parameters(), lr=0.05),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * STEPS + 1) for optimizer in optimizers
    ]
    return TrainingState(model, optimizers, schedules, np.random.default_rng(7))


def train(checkpoints: Checkpoints | None, *, after_step: Callable[[TrainingState], None] | None = None):
    """The loop of retrieval.train in small: negatives by numpy, dropout by torch, best weights by a judge."""
    state = fresh()
    x = np.random.default_rng(1).integers(0, ITEMS, POSITIONS)
    y = (x * 7 + 3) % ITEMS
    if checkpoints is not None:
        checkpoints.resume(state)
    while state.epoch < EPOCHS:
        order = np.random.default_rng([7, state.epoch]).permutation(POSITIONS)
        batches = np.split(order, range(BATCH, POSITIONS, BATCH))
        state.model.train()
        for chosen in batches[state.step :]:
            items = torch.from_numpy(np.concatenate([y[chosen], state.rng.integers(0, ITEMS, 8)]))
            logits = state.model(torch.from_numpy(x[chosen]))[:, items]
            loss = F.cross_entropy(logits, torch.arange(len(chosen)))
            for optimizer in state.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for thing in (*state.optimizers, *state.schedules):
                thing.step()
            state.losses.append(loss.item())
            state.step += 1
            if checkpoints is not None:
                checkpoints.save_if_due(state)
            if after_step is not None:
                after_step(state)
        finish_epoch(state, x, y)
        if checkpoints is not None:
            checkpoints.save(state)
    return state


def finish_epoch(state: TrainingState, x: np.ndarray, y: np.ndarray) -> None:
    state.model.eval()
    with torch.no_grad():
        right = state.model(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)
    # A judge that prefers the second epoch, so that the best weights are not the last ones.
    judged = float(right.float().mean()) / (1 + abs(state.epoch - 1))
    state.epochs.append({"epoch": state.epoch + 1, "loss": float(np.mean(state.losses)), "judged": judged})
    if judged > state.best_ndcg10:
        state.best_ndcg10, state.best_epoch = judged, state.epoch + 1
        state.best_weights = deepcopy(dict(state.model.state_dict()))
    state.epoch, state.step, state.losses = state.epoch + 1, 0, []


def at(folder: Path, config: CheckpointConfig = EVERY_STEP, **changed: object) -> Checkpoints:
    return Checkpoints(folder, {**BELONGS_TO, **changed}, config=config)


@pytest.fixture(scope="module")
def uninterrupted() -> TrainingState:
    return train(None)


def assert_same(found: TrainingState, expected: TrainingState) -> None:
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight), name
        assert torch.equal(found.best_weights[name], expected.best_weights[name]), name
    for mine, theirs in zip(found.optimizers, expected.optimizers, strict=True):
        mine, theirs = mine.state_dict(), theirs.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        for number, kept in theirs["state"].items():
            assert all(
                torch.equal(torch.as_tensor(mine["state"][number][k]), torch.as_tensor(v)) for k, v in kept.items()
            )
    assert found.epochs == expected.epochs
    assert (found.best_epoch, found.best_ndcg10) == (expected.best_epoch, expected.best_ndcg10)
    assert found.rng.bit_generator.state == expected.rng.bit_generator.state


def script(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", __file__, *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_training_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, uninterrupted):
    # Killed 3 steps into the third epoch, with a checkpoint two steps old.
    with script("slow", str(tmp_path / "toy")) as child:
        for line in child.stdout:
            if line == f"{2 * STEPS + 3}\n":
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    left = fresh()
    assert at(tmp_path / "toy").resume(left)
    assert (left.epoch, left.step, len(left.losses), len(left.epochs)) == (2, 1, 1, 2)
    assert_same(train(at(tmp_path / "toy")), uninterrupted)


def test_kills_at_any_moment_leave_a_checkpoint_to_go_on_from(tmp_path, uninterrupted):
    with script("storm", str(tmp_path / "toy")) as child:
        told, _ = child.communicate(timeout=300)
    assert child.returncode == 0, told
    assert int(told) >= 5
    done = fresh()
    assert at(tmp_path / "toy").resume(done)
    assert_same(done, uninterrupted)


@pytest.mark.parametrize("stop", [1, STEPS - 1, STEPS, 2 * STEPS + 2, EPOCHS * STEPS])
def test_a_training_resumed_after_any_step_is_the_same(tmp_path, uninterrupted, stop):
    class Enough(Exception):
        pass

    taken = []

    def interrupt(state: TrainingState) -> None:
        taken.append(state.step)
        if len(taken) == stop:
            raise Enough

    with pytest.raises(Enough):
        train(at(tmp_path / "toy"), after_step=interrupt)
    assert_same(train(at(tmp_path / "toy"), after_step=lambda state: taken.append(state.step)), uninterrupted)
    assert len(taken) == EPOCHS * STEPS  # no step twice


def test_checkpoints_do_not_touch_the_training_and_a_finished_one_is_not_trained_again(tmp_path, uninterrupted):
    assert_same(train(at(tmp_path / "toy")), uninterrupted)
    again = []
    assert_same(train(at(tmp_path / "toy"), after_step=again.append), uninterrupted)
    assert again == []


def test_without_a_checkpoint_nothing_changes(tmp_path, uninterrupted):
    state = fresh()
    assert not at(tmp_path / "toy").resume(state)
    assert_same(train(None), uninterrupted)
    assert (state.epoch, state.step, state.epochs) == (0, 0, [])


def test_the_interval_decides_within_an_epoch_and_minutes_add_up(tmp_path):
    state, rare = fresh(), at(tmp_path / "toy", EPOCH_ENDS)
    assert not rare.save_if_due(state)
    assert not rare.folder.exists()
    state._minutes_before = 90.0
    assert at(tmp_path / "toy", EVERY_STEP).save_if_due(state)
    left = fresh()
    rare.resume(left)
    assert 90.0 <= left.minutes < 90.1


def test_other_settings_are_refused_by_name_and_leave_the_checkpoint(tmp_path):
    at(tmp_path / "toy").save(fresh())
    other = at(tmp_path / "toy", retriever={"train": {"learning_rate": 0.01, "batch": 9}}, dataset="34cd")
    with pytest.raises(Mismatch) as refused:
        other.resume(fresh())
    assert "retriever.train.learning_rate 0.02 → 0.01" in str(refused.value)
    assert f"retriever.train.epochs {EPOCHS} → (not there)" in str(refused.value)
    assert "retriever.train.batch (not there) → 9" in str(refused.value)
    assert 'dataset "12ab" → "34cd"' in str(refused.value)
    assert "start anew with --force" in str(refused.value)
    assert at(tmp_path / "toy").resume(fresh())


@pytest.mark.parametrize("fault", ["other settings", "damage"])
def test_a_training_that_nobody_asked_for_by_itself_begins_anew_instead(tmp_path, fault):
    at(tmp_path / "toy").save(fresh())
    if fault == "damage":
        (tmp_path / "toy" / "state.json").write_text("{}")
    belongs_to = {**BELONGS_TO, "dataset": "34cd"} if fault == "other settings" else BELONGS_TO
    lenient = Checkpoints(tmp_path / "toy", belongs_to, config=EVERY_STEP, restart=None)
    assert not lenient.resume(fresh())
    lenient.save(fresh())
    assert lenient.resume(fresh())


def test_differences_are_leaves_alone():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 1, "c": [2, 1]}, "d": "x", "e": {}}) == ["a.c [1, 2] → [2, 1]", 'd null → "x"']


def test_another_model_is_refused(tmp_path):
    at(tmp_path / "toy").save(fresh())
    with pytest.raises(Mismatch, match=r"another model .*size mismatch.*--force"):
        at(tmp_path / "toy").resume(fresh(width=8))


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_noticed_and_says_what_to_do(tmp_path, file, damage):
    checkpoints = at(tmp_path / "toy")
    checkpoints.save(fresh())
    path = tmp_path / "toy" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-20] ^= 1
        path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"toy.*start anew with --force"):
        checkpoints.resume(fresh())


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    checkpoints = at(tmp_path / "toy")
    checkpoints.save(fresh())
    manifest = tmp_path / "toy" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(Mismatch, match="format 2, this version knows 1"):
        checkpoints.resume(fresh())


@pytest.mark.parametrize("where", ["weight", "optimizer"])
def test_what_is_not_finite_is_never_kept(tmp_path, where):
    state, checkpoints = train(None), at(tmp_path / "toy")
    checkpoints.save(state)
    with torch.no_grad():
        if where == "weight":
            state.model.out.bias[3] = float("nan")
        else:
            state.optimizers[1].state[state.model.table.weight]["exp_avg"][0, 0] = float("inf")
    state.step = 4
    name = {"weight": "out.bias", "optimizer": "optimizers.1.0.exp_avg"}[where]
    with pytest.raises(FloatingPointError, match=f"{name} is NaN or infinite after step 4 of epoch {EPOCHS + 1}"):
        checkpoints.save(state)
    kept = fresh()
    checkpoints.resume(kept)
    assert kept.faults() == []


def test_a_disk_that_refuses_leaves_the_former_checkpoint(tmp_path, uninterrupted):
    checkpoints = at(tmp_path / "kept" / "toy")
    checkpoints.save(uninterrupted)
    (tmp_path / "file").write_text("")
    with pytest.raises(NoSpace):
        at(tmp_path / "file" / "toy").save(uninterrupted)
    left = fresh()
    assert checkpoints.resume(left)
    assert_same(left, uninterrupted)


def test_a_removed_checkpoint_is_gone_even_where_a_swap_was_killed(tmp_path):
    checkpoints = at(tmp_path / "toy")
    checkpoints.remove()
    checkpoints.save(fresh())
    (tmp_path / "toy").rename(tmp_path / ".old-toy")
    checkpoints.save(fresh())
    (tmp_path / ".old-toy").mkdir(exist_ok=True)
    checkpoints.remove()
    assert not checkpoints.resume(fresh())
    assert list(tmp_path.iterdir()) == []


def slow(folder: Path) -> None:
    """Trains with a checkpoint every fourth step and says how many steps are done; waits to be killed."""
    checkpoints = Checkpoints(folder, BELONGS_TO, config=EPOCH_ENDS)
    done = 0

    def say(state: TrainingState) -> None:
        nonlocal done
        done += 1
        if state.step == 1:
            checkpoints.save(state)
        print(done, flush=True)
        time.sleep(0.02)

    train(checkpoints, after_step=say)


def storm(folder: Path) -> None:
    """Forks trainings that save after every step, kills each after a random while, until one comes to its end."""
    rng = random.Random(5)
    train(None)  # what torch imports at first use is imported here once, not in every fork
    started = time.monotonic()
    train(Checkpoints(folder.with_name("whole"), BELONGS_TO, config=EVERY_STEP))
    whole_s = time.monotonic() - started
    for kills in range(400):
        child = os.fork()
        if not child:
            train(Checkpoints(folder, BELONGS_TO, config=EVERY_STEP))
            os._exit(0)
        # Longer and longer, so that the end is reached on a machine that grows busy, too.
        time.sleep(rng.uniform(0.0, 0.2) * whole_s * (1 + kills / 20))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(kills)
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"slow": slow, "storm": storm}[sys.argv[1]](Path(sys.argv[2]))
