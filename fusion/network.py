"""A small network over all sources' scores, for what a weighted sum of them cannot say."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, linear
from torch.optim.lr_scheduler import OneCycleLR

from data.schema import Candidates, Histories, Scores
from fusion.head import above_the_rest
from fusion.linear import LinearFusion, column, targets_among

NETWORK = "network over all sources"
"""Its part of a fused score, among the sources of the candidates that it has ordered."""
FARTHEST = 6.0
"""Standard deviations beyond which a feature says nothing more: what lies there was not seen in training."""
LAYERS = ("first", "second", "last")


class NetworkConfig(BaseModel):
    """Size and training of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(
        8, ge=0, description="passes over group A's lists; cross-validation says after which to stop; 0: no network"
    )
    users: int = Field(20_000, ge=1, description="of group A that teach it, at most")
    reach: int = Field(50, ge=1, description="first places by the weighted sum that it may put in another order")
    width: int = Field(64, ge=1, description="units of each of its two hidden layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="of hidden units")
    batch_size: int = Field(64, ge=1, description="lists in one step")
    learning_rate: float = Field(2e-3, gt=0, description="largest learning rate, after warm-up")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay")


@dataclass(frozen=True)
class FusionNetwork:
    """What is added to the weighted sum of a list's first items: how they stand by each source, seen together.

    An item is described by each source's column, by how far it lies below the list's best, and by the logarithm of its
    place in the list by that source; the weighted sum itself is one more such column. Two hidden layers of GELU.

    Attributes:
        sources: whose columns it looks at, in this order.
        centre, spread: (F,) float32, mean and standard deviation of each feature in training.
        weights: a matrix and a bias of each layer.
        reach: places that it looks at.
    """

    sources: tuple[str, ...]
    centre: Scores
    spread: Scores
    weights: Mapping[str, Tensor]
    reach: int

    def reordered(self, candidates: Candidates, fusion: LinearFusion) -> Candidates:
        """The lists with their first `reach` places in a new order, and `NETWORK` among their sources.

        Args:
            candidates: (B, K), in the order of the weighted sum, whose scores they have.
            fusion: that sum.
        """
        head = candidates.head(self.reach)
        added = np.zeros(candidates.item_rows.shape, dtype=np.float32)
        added[:, : head.depth] = self.corrections(head, fusion)
        first = np.arange(candidates.depth) < head.depth
        score = above_the_rest(candidates.score + added, candidates.score, candidates.present & first)
        return candidates.with_source(NETWORK, added).ranked_by(score)

    def corrections(self, head: Candidates, fusion: LinearFusion) -> Scores:
        """(B, K) float32, what it adds to each of these; 0 where there is no item."""
        standard = self._standard(features(head, fusion, self.sources))
        with torch.inference_mode():
            added = _passed(self.weights, standard)
        return np.where(head.present, added.numpy(), np.float32(0))

    def _standard(self, described: Scores) -> Tensor:
        return torch.from_numpy((described - self.centre) / self.spread).clamp_(-FARTHEST, FARTHEST)

    @classmethod
    def train(
        cls,
        candidates: Candidates,
        targets: Histories,
        fusion: LinearFusion,
        *,
        sources: Sequence[str],
        config: NetworkConfig,
        seed: int,
        watched: Callable[[int, "FusionNetwork"], None],
    ) -> None:
        """Minimises -log of what a softmax over each list gives to all of its targets, as `LinearFusion.fit` does.

        It begins as the weighted sum alone, since its last layer begins with zeros. Lists without a target teach
        nothing.

        Args:
            candidates: (B, K) in the order of the weighted sum, of users who taught that nothing.
            watched: is given each epoch's number and the network as it then is; no more of them once the weights are
                no longer finite, as by far too large a learning rate.
        """
        head = candidates.head(config.reach)
        relevant = targets_among(head, targets)
        teaches = relevant.any(axis=1)
        if not teaches.any():
            return
        head, relevant = head.take(np.flatnonzero(teaches)), relevant[teaches]
        described = features(head, fusion, sources)
        seen = described[head.present]
        centre, spread = seen.mean(axis=0), seen.std(axis=0)
        spread = np.where(spread > 1e-6 * np.abs(seen).max(axis=0), spread, np.float32(1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = _initial(described.shape[2], config.width)
            network = cls(tuple(sources), centre, spread, weights, config.reach)
            lists = _Lists(
                network._standard(described),
                torch.from_numpy(np.where(head.present, head.score, -np.inf)),
                torch.from_numpy(relevant),
            )
            for epoch in _epochs(weights, lists, config):
                watched(epoch, network)

    def copy(self) -> "FusionNetwork":
        """One that further training does not change."""
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return FusionNetwork(self.sources, self.centre, self.spread, weights, self.reach)

    def save(self, path: Path) -> None:
        """Writes one safetensors file."""
        tables = {"centre": torch.from_numpy(self.centre), "spread": torch.from_numpy(self.spread)}
        about = {"sources": json.dumps(self.sources), "reach": str(self.reach)}
        save_file({**tables, **self.weights}, path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> "FusionNetwork":
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        centre, spread = tensors.pop("centre").numpy(), tensors.pop("spread").numpy()
        return cls(tuple(json.loads(about["sources"])), centre, spread, tensors, int(about["reach"]))


def features(head: Candidates, fusion: LinearFusion, sources: Sequence[str]) -> Scores:
    """(B, K, F) float32: value, distance to the list's best, and log(1 + place) of the sum and of each source."""
    present = head.present[:, None]  # (B, 1, K)
    of_sources = [
        column(head, name, fusion.transforms[name], typical=fusion.typical[name], within=fusion.ranges.get(name))
        for name in sources
    ]
    columns = np.stack([np.where(head.present, head.score, 0), *of_sources], axis=1)  # (B, C, K)
    ranked = np.where(present, columns, -np.inf)
    best = ranked.max(axis=2, keepdims=True, initial=-np.inf)
    order = np.argsort(-ranked, axis=2, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[2]), order.shape), axis=2)
    described = np.concatenate([columns, np.where(present, columns - best, 0), np.log1p(place)], axis=1)
    return np.ascontiguousarray(described.transpose(0, 2, 1), dtype=np.float32)


@dataclass(frozen=True)
class _Lists:
    """Standardised features (B, K, F), weighted sums (B, K) with -inf where there is no item, and targets (B, K)."""

    described: Tensor
    base: Tensor
    relevant: Tensor


def _initial(inputs: int, width: int) -> dict[str, Tensor]:
    sizes = zip(LAYERS, (inputs, width, width), (width, width, 1), strict=True)
    layers = {name: nn.Linear(size, out) for name, size, out in sizes}
    nn.init.zeros_(layers["last"].weight)
    # A bias would raise all items of a list alike.
    return {
        f"{name}.{part}": weight
        for name, layer in layers.items()
        for part, weight in layer.named_parameters()
        if (name, part) != ("last", "bias")
    }


def _passed(weights: Mapping[str, Tensor], described: Tensor, *, drop: float = 0.0) -> Tensor:
    """(B, K) from (B, K, F)."""
    hidden = described
    for name in LAYERS[:-1]:
        hidden = gelu(linear(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        hidden = dropout(hidden, drop, training=drop > 0)
    return linear(hidden, weights["last.weight"])[..., 0]


def _epochs(weights: Mapping[str, Tensor], lists: _Lists, config: NetworkConfig) -> Iterator[int]:
    """Trains in place and stops after each epoch to tell its number."""
    users = len(lists.base)
    steps = -(-users // config.batch_size)
    optimizer = torch.optim.AdamW(weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=1 + steps * config.epochs)
    for epoch in range(1, config.epochs + 1):
        for chosen in torch.split(torch.randperm(users), config.batch_size):
            logits = lists.base[chosen] + _passed(weights, lists.described[chosen], drop=config.dropout)
            of_targets = torch.where(lists.relevant[chosen], logits, -torch.inf)
            loss = (logits.logsumexp(dim=1) - of_targets.logsumexp(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if not all(weight.isfinite().all() for weight in weights.values()):
            return
        yield epoch
