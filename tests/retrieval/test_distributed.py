"""Two gloo processes against one. Run as a script, under torchrun, this file is one of the two."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from retrieval.distributed import ALONE, BUCKET_BYTES, Team, _buckets, device_of, joined_team
from retrieval.rounds import tune_encoder
from retrieval.training_state import TrainingState
from store.checkpoint import CheckpointConfig, Checkpoints
from store.errors import BadInput, Mismatch
from tests.retrieval.lesson import fresh, trained, weights

ROOT = Path(__file__).parents[2]
ITEMS, HISTORY, EPOCHS = 30, 4, 4


@dataclass(frozen=True)
class Case:
    """One training; `batch` leaves a last batch of a single example to two processes."""

    sparse: bool = False
    sampled: bool = False
    dropout: float = 0.0
    examples: int = 37
    batch: int = 12
    stop_epoch: int = EPOCHS


CASES = {
    "dense": Case(),
    "sparse": Case(sparse=True, sampled=True),
    "stopped": Case(stop_epoch=2),
    "dropout": Case(sparse=True, dropout=0.3, batch=8),
}


class Toy(nn.Module):
    """User vectors as mean of item vectors; places without an item, so that processes differ in positions."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.dropout = case.dropout
        self.items = nn.Embedding(ITEMS, 6, sparse=case.sparse)
        self.user = nn.Linear(6, 6)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("seen", torch.rand(3))

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        vectors = F.dropout(self.items(history), self.dropout, self.training)  # (b, T, D)
        steps = torch.arange(1, history.shape[1] + 1)[:, None]
        return self.user(vectors.cumsum(1) / steps)


def begin(case: Case, rank: int) -> TrainingState:
    torch.manual_seed(100 + rank)  # every process starts elsewhere, until the leader's weights are broadcast
    model = Toy(case)
    weights = dict(model.named_parameters())
    sparse = [weights.pop("items.weight")] if case.sparse else []
    optimizers: list = [torch.optim.AdamW(weights.values(), lr=0.02, weight_decay=0.01)]
    optimizers += [torch.optim.SparseAdam(sparse, lr=0.02)] if sparse else []
    schedules = [torch.optim.lr_scheduler.OneCycleLR(each, 0.02, total_steps=EPOCHS * 5 + 1) for each in optimizers]
    return TrainingState(model, optimizers, schedules, np.random.default_rng(3))


def data(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, T) items and the one after each, -1 at places that ask for none; as many as the example's number says."""
    rng = np.random.default_rng(1)
    items = torch.from_numpy(rng.integers(0, ITEMS, (case.examples, HISTORY)))
    wanted = (items * 7 + 3) % ITEMS
    asked = np.arange(HISTORY) < rng.integers(1, HISTORY + 1, case.examples)[:, None]
    return items, torch.where(torch.from_numpy(asked), wanted, -1)


def train(case: Case, team: Team, *, checkpoints: Checkpoints | None = None, until: int | None = None) -> TrainingState:
    """The loop of retrieval.train in small."""
    state, (items, wanted) = begin(case, team.rank), data(case)
    if checkpoints is not None:
        checkpoints.resume(state)
    team.broadcast_weights(state.model)
    team.check_same({"epoch": state.epoch, "step": state.step, "case": vars(case)}, "progress")
    steps = 0
    while state.epoch < EPOCHS:
        order = np.random.default_rng([3, state.epoch]).permutation(case.examples)
        batches = np.split(order, range(case.batch, case.examples, case.batch))
        state.model.train()
        for chosen in batches[state.step :]:
            team.seed_step(3, state.epoch * len(batches) + state.step)
            state.losses.append(take_step(state, case, team, items=items[chosen], wanted=wanted[chosen]))
            state.step, steps = state.step + 1, steps + 1
            if checkpoints is not None and team.leads:
                checkpoints.save_if_due(state)
            if steps == until:
                return state
        # A judge that only the leader asks; the others would decide otherwise.
        judged = team.from_leader(lambda: float(state.epoch if team.leads else -1))
        state.epochs.append({"loss": float(np.mean(state.losses)), "judged": judged})
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        if judged + 1 >= case.stop_epoch:
            break
    return state


def take_step(state: TrainingState, case: Case, team: Team, *, items: torch.Tensor, wanted: torch.Tensor) -> float:
    share = team.share(len(items))
    users, wanted = state.model(items[share.place]), wanted[share.place]
    asked = wanted >= 0
    rows = torch.from_numpy(state.rng.integers(0, ITEMS, 16)) if case.sampled else torch.arange(ITEMS)
    logits = users[asked] @ state.model.items(torch.cat([rows, wanted[asked]])).T
    own = torch.arange(len(rows), logits.shape[1])
    loss = F.cross_entropy(torch.cat([logits[:, own].diagonal()[:, None], logits[:, : len(rows)]], dim=1), own * 0)
    mine = int(asked.sum()) * share.counts
    everybody, total = team.sum([mine, mine * loss.item()])
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    loss.backward()
    team.average_gradients(state.model.parameters(), part=mine / everybody)
    for thing in (*state.optimizers, *state.schedules):
        thing.step()
    return total / everybody


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under torchrun have made of every case."""
    folder = tmp_path_factory.mktemp("two")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run(
        [*command, str(folder)],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["dense", "sparse", "stopped"])
def test_two_processes_with_half_the_batch_equal_one_with_the_whole(two, name):
    case = CASES[name]
    alone = train(case, ALONE)
    weights = load_file(two / f"{name}-0.safetensors")
    for key, weight in alone.model.state_dict().items():
        torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-5)
    epochs = json.loads((two / f"{name}-0.json").read_text())
    assert [epoch["loss"] for epoch in epochs] == pytest.approx([epoch["loss"] for epoch in alone.epochs], abs=1e-5)
    assert len(epochs) == case.stop_epoch
    # The comparison can fail: training moved the weights thousands of times as far.
    assert max((weights[key] - weight).abs().max() for key, weight in begin(case, 0).model.state_dict().items()) > 0.05


def towers_trained_by(team: Team) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses of the real training, without dropout, which would differ."""
    model = fresh(epochs=2, dropout=0.0, residual_dropout=0.0, seed=3 + team.rank)
    record = trained(model, team=team)
    return weights(model), [epoch["loss"] for epoch in record.epochs]


def test_towers_trained_by_two_processes_equal_those_of_one(two):
    expected, losses = towers_trained_by(ALONE)
    found = [load_file(two / f"towers-{rank}.safetensors") for rank in (0, 1)]
    for name, weight in expected.items():
        torch.testing.assert_close(found[0][name], weight, rtol=0, atol=1e-4)
        assert torch.equal(found[0][name], found[1][name])
    assert json.loads((two / "losses-1.json").read_text()) == pytest.approx(losses, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_processes_stay_bitwise_equal(two, name):
    first, second = (load_file(two / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (two / f"{name}-0.json").read_text() == (two / f"{name}-1.json").read_text()


def test_two_processes_resume_exactly_with_dropout(two):
    whole, resumed = (load_file(two / f"{name}-0.safetensors") for name in ("dropout", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_dropout_differs_between_processes(two):
    drawn = [json.loads((two / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    assert drawn[0] != drawn[1]


def test_processes_with_other_data_are_refused_by_both(two):
    told = [json.loads((two / f"refused-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("process 1 of 2 has other settings than process 0")


def test_gradients_are_the_mean_over_all_positions_not_over_processes(two):
    # Parts 1/4 and 3/4 of gradients 4 and 8, dense; sparse rows 1 + (1, 2), of which row 1 belongs to both.
    found = json.loads((two / "gradients-1.json").read_text())
    assert found["dense"] == [0.25 * 4 + 0.75 * 8] * 3
    assert found["sparse"] == [[0.0, 0.0], [7.0, 7.0], [6.0, 6.0], [0.0, 0.0]]
    assert found["layout"] == "torch.sparse_coo"
    assert found["sum"] == [3.0, 0.5]
    assert found["nan"] == [True]


def test_the_leader_alone_tunes_and_all_have_its_vectors_and_its_encoder(two):
    told = [json.loads((two / f"tuned-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["vectors"] == [[2.0] * 3] * 4  # of the second of three rounds, which validation likes best
    assert told[0]["encoder"] == [2.0, 2.0]
    assert told[0]["seen"] == [0.0, 1.0, 2.0, 3.0]


def test_an_array_of_half_precision_comes_from_the_leader_as_it_is(two):
    for rank in (0, 1):
        assert json.loads((two / f"half-{rank}.json").read_text()) == [[1.0, float(np.float16(0.1))], [0.0, -3.0]]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to list threads")
def test_no_thread_of_the_team_outlives_it(two):
    # One that does crashes the end of the process, now and then.
    left = json.loads((two / "threads-0.json").read_text())
    assert left
    assert [name for name in left if "gloo" in name] == []


def test_shares_cover_a_batch_once_and_leave_nobody_out():
    for size in (1, 2, 3, 5):
        for examples in range(1, 12):
            shares = [Team(rank, size).share(examples) for rank in range(size)]
            taken = [np.arange(examples)[share.place] for share in shares]
            counted = np.concatenate([part for part, share in zip(taken, shares, strict=True) if share.counts])
            assert sorted(counted) == list(range(examples))
            assert all(len(part) for part in taken)


def test_a_process_alone_changes_nothing():
    model = Toy(Case())
    model.items.weight.grad = torch.ones(ITEMS, 6)
    before, drawn = deepcopy(model.state_dict()), torch.get_rng_state()
    with joined_team() as team:
        assert (team, team.leads) == (ALONE, True)
        team.broadcast_weights(model)
        team.average_gradients(model.parameters(), part=1.0)
        team.seed_step(1, 2)
        team.wait()
        team.check_same("anything", "anything")
        assert team.sum([1.5, 2.0]) == [1.5, 2.0]
        assert team.from_leader(lambda: 0.25) == 0.25
        assert team.array_from_leader(lambda: np.ones(3), like=np.zeros(3)).tolist() == [1, 1, 1]
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert torch.equal(model.items.weight.grad, torch.ones(ITEMS, 6))
    assert torch.equal(drawn, torch.get_rng_state())


def test_half_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadInput, match=r"LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"), joined_team():
        pass


def test_each_process_has_a_gpu_of_its_own_or_all_have_the_cpu():
    assert device_of(3, gpus=0) == torch.device("cpu")
    assert device_of(1, gpus=2) == torch.device("cuda", 1)
    with pytest.raises(BadInput, match=r"has 2 GPUs, too few for process 3.*--nproc-per-node 2"):
        device_of(2, gpus=2)


def test_buckets_keep_all_gradients_in_order_and_types_apart():
    large = torch.zeros(BUCKET_BYTES // 4 + 1)
    gradients = [torch.zeros(2), torch.zeros(3), large, torch.zeros(4, dtype=torch.float64), torch.zeros(5)]
    found = [[each.numel() for each in bucket] for bucket in _buckets(gradients)]
    assert found == [[2, 3], [large.numel()], [4], [5]]


def main(folder: Path) -> None:
    """What each of the two processes does."""
    with joined_team() as team:

        def keep(name: str, value: object) -> None:
            (folder / f"{name}-{team.rank}.json").write_text(json.dumps(value))

        for name, case in CASES.items():
            state = train(case, team)
            save_file(dict(state.model.state_dict()), folder / f"{name}-{team.rank}.safetensors")
            keep(name, state.epochs)
        checkpoints = Checkpoints(folder / "kept", {"case": "dropout"}, config=CheckpointConfig(every_minutes=0))
        train(CASES["dropout"], team, checkpoints=checkpoints, until=7)
        team.wait()
        resumed = train(CASES["dropout"], team, checkpoints=checkpoints)
        save_file(dict(resumed.model.state_dict()), folder / f"resumed-{team.rank}.safetensors")
        towers, losses = towers_trained_by(team)
        save_file(towers, folder / f"towers-{team.rank}.safetensors")
        keep("losses", losses)
        team.seed_step(1, 1)
        keep("drawn", torch.rand(4).tolist())
        keep("refused", refusal(lambda: team.check_same({"seed": team.rank}, "settings")))
        keep("gradients", gradients(team))
        keep("tuned", tuned_by(team))
        half = np.array([[1, 0.1], [team.rank, -3]], dtype=np.float16)
        keep("half", team.array_from_leader(lambda: half, like=np.empty_like(half)).tolist())
    left = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{team.rank}.json").write_text(json.dumps(left))


class ToyTuner:
    """An encoder of two weights, which each round raises by 1 where it is the leader's."""

    def __init__(self, team: Team) -> None:
        self.team, self.encoder, self.log = team, nn.Linear(2, 1, bias=False), lambda entry: None
        nn.init.zeros_(self.encoder.weight)

    def weights(self) -> list[torch.Tensor]:
        return [self.encoder.weight.detach().clone()]

    @torch.no_grad()
    def round(self, towers, train, text_vectors, **_):
        assert self.team.leads
        self.encoder.weight.add_(1)
        return text_vectors + 1

    @torch.no_grad()
    def finished(self, weights: list[torch.Tensor]) -> nn.Linear:
        self.encoder.weight.copy_(weights[0])
        return self.encoder


def tuned_by(team: Team) -> dict[str, object]:
    """Three rounds, judged by figures that all processes have alike."""
    seen: list[float] = []

    def fit_towers(vectors: np.ndarray, number: int) -> tuple[None, float]:
        seen.append(float(vectors.mean()))
        return None, [0.1, 0.2, 0.4, 0.3][number]

    start = np.zeros((4, 3), dtype=np.float32)
    found = tune_encoder(ToyTuner(team), None, start, fit_towers=fit_towers, rounds=3, selects=True, team=team)
    return {"vectors": found.text_vectors.tolist(), "encoder": found.encoder.weight[0].tolist(), "seen": seen}


def refusal(call: Callable[[], None]) -> str:
    try:
        call()
    except Mismatch as error:
        return str(error)
    return "not refused"


def gradients(team: Team) -> dict[str, object]:
    """Sums of gradients and numbers that can be reckoned by hand."""
    dense, sparse = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4, 2))
    dense.grad = torch.full((3,), 4.0 if team.leads else 8.0)
    rows = torch.tensor([[1]] if team.leads else [[1, 2]])
    sparse.grad = torch.sparse_coo_tensor(
        rows, torch.full((rows.shape[1], 2), 4.0 if team.leads else 8.0), (4, 2), check_invariants=False
    )
    team.average_gradients([dense, sparse], part=0.25 if team.leads else 0.75)
    return {
        "dense": dense.grad.tolist(),
        "sparse": sparse.grad.to_dense().tolist(),
        "layout": str(sparse.grad.layout),
        "sum": team.sum([1.0 + team.rank, 0.5 * team.rank]),
        "nan": [bool(np.isnan(team.sum([float("nan") if team.leads else 1.0])[0]))],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
