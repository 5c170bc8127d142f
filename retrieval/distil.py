"""A teacher's order of the best candidates, taught to the user towers; the item vectors, and the index, stay.

Listwise: the cross-entropy of each tower's softmax over the candidates to the teacher's (Hinton et al. 2015), which
differs from their Kullback-Leibler divergence by a constant.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from data.schema import NO_ITEM, Candidates, Histories, Holdout, Rows, Scores
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.towers import TwoTowers
from retrieval.trackers import Log
from retrieval.validation import catalog_ndcg10

OWN_SCORES = "retrieval"
"""Name of the first stage as a teacher of its own towers."""


class DistilConfig(BaseModel):
    """How a reranker of the run, or the fused first stage, teaches the user towers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str | None = Field(
        None,
        description="key of a reranker of this run, trained behind the same settings without it; retrieval: the first "
        "stage's own fused scores; unset: none",
    )
    depth: int = Field(
        100,
        ge=2,
        description="candidates of a history whose fused scores teach; a reranker is asked as deep as it read",
    )
    users: int = Field(5000, ge=1, description="histories that the teacher is asked about, at most, drawn once")
    epochs: int = Field(4, ge=1, description="passes over them, of which the best is kept, or none")
    batch_size: int = Field(64, ge=1, description="histories in one step")
    learning_rate: float = Field(2e-4, gt=0, description="constant")
    temperature: float = Field(1.0, gt=0, description="by which both sides are divided before their softmax")
    seed: int = Field(0, ge=0, description="of users, order and dropout")


@dataclass(frozen=True)
class Lessons:
    """What a teacher says.

    Attributes:
        histories: B lists.
        candidates: (B, K) in any order.
        scores: (B, K) float32 of the teacher.
    """

    histories: Histories
    candidates: Candidates
    scores: Scores

    def __len__(self) -> int:
        return len(self.histories)


@dataclass(frozen=True)
class DistilRecord:
    """What became of one pair of towers.

    Attributes:
        best_epoch: whose weights are kept; 0: those from before.
        before_ndcg10, best_ndcg10: on validation; 0 without.
    """

    name: str
    best_epoch: int
    before_ndcg10: float
    best_ndcg10: float
    minutes: float


def distil_towers(
    ensemble: TowerEnsemble,
    lessons: Lessons,
    *,
    validation: Holdout,
    config: DistilConfig,
    log: Log,
    epochs: Mapping[str, int] | None = None,
) -> tuple[TowerEnsemble, list[DistilRecord]]:
    """A copy whose members have learnt, each for as many epochs as its search over the catalog gained by.

    Args:
        lessons: of training users; none of validation's.
        validation: users by whose next item the epochs are chosen.
        epochs: name of a member → epochs chosen before, which are then run without validation.
    """
    members, records = [], []
    for place, member in enumerate(ensemble.members):
        planned = config.epochs if epochs is None else epochs[member.name]
        pupil = replace(member, towers=copy.deepcopy(member.towers))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + place)
            records.append(_distil(pupil, lessons, validation, config=config, epochs=planned, chosen=epochs, log=log))
        members.append(pupil)
    return replace(ensemble, members=tuple(members)), records


def _distil(
    member: Member,
    lessons: Lessons,
    validation: Holdout,
    *,
    config: DistilConfig,
    epochs: int,
    chosen: Mapping[str, int] | None,
    log: Log,
) -> DistilRecord:
    towers, started = member.towers, time.monotonic()
    item_vectors = towers.item_vectors()
    table = torch.from_numpy(item_vectors)
    optimizer = torch.optim.Adam(towers.user.parameters(), lr=config.learning_rate)  # type: ignore[attr-defined]
    rng = np.random.default_rng(config.seed)

    def validated() -> float:
        return catalog_ndcg10(
            lambda asked: towers.user_vectors(asked) @ item_vectors.T, validation, n_items=len(item_vectors)
        )

    before = best = validated()
    weights, best_epoch = _weights(towers), 0
    for epoch in range(1, epochs + 1):
        losses = []
        towers.train()
        for places in _batches(len(lessons), config.batch_size, rng):
            loss = _loss(towers, table, lessons, places, temperature=config.temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        towers.eval()
        reached = validated()
        log({"stage": f"{member.name} taught", "epoch": epoch, "loss": float(np.mean(losses)), "ndcg@10": reached})
        if reached > best or chosen is not None:
            weights, best, best_epoch = _weights(towers), reached, epoch
    towers.load_state_dict(weights)
    return DistilRecord(member.name, best_epoch, before, best, (time.monotonic() - started) / 60)


def _loss(towers: TwoTowers, table: Tensor, lessons: Lessons, places: Rows, *, temperature: float) -> Tensor:
    """Mean over the users at `places`."""
    histories = lessons.histories.take(places)
    recent = torch.from_numpy(histories.last(towers.user.history_items))
    users = towers.user.forward(lambda text, rows: table[rows], towers.text, recent, histories.about)  # (b, D)
    rows = torch.from_numpy(lessons.candidates.item_rows[places])
    found = torch.einsum("bd,bkd->bk", users, table[rows.clamp(min=0)])  # (b, K)
    absent = rows == NO_ITEM
    taught = torch.from_numpy(lessons.scores[places]).masked_fill(absent, float("-inf"))
    wanted = (taught / temperature).softmax(dim=1)
    logs = (found.masked_fill(absent, float("-inf")) / temperature).log_softmax(dim=1).masked_fill(absent, 0.0)
    return -(wanted * logs).sum(dim=1).mean() * temperature**2


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    order = rng.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


def _weights(towers: TwoTowers) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in towers.state_dict().items()}
