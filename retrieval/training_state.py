"""What a training of towers consists of, besides its settings and data."""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


@dataclass
class TrainingState:
    """What a training consists of besides its settings and data; changed in place as it goes on.

    Attributes:
        rng: draws negatives; dropout draws from torch's global generator, which is kept, too. The order of an
            epoch is not: draw it from a generator of its own, seeded by the epoch, and a resumed epoch has it again.
        epoch: whole epochs done.
        step: steps done of the epoch under way.
        steps: of all epochs.
        losses: one a step of the epoch under way.
        epochs: one record a finished epoch, of plain values.
        best_share: what `hastened` was at the end of the best epoch.
        best_weights: the model's state of the best epoch; at first, that of the start.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    schedules: Sequence[OneCycleLR]
    rng: np.random.Generator
    epoch: int = 0
    step: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_ndcg10: float = -1.0
    best_share: float = 0.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    _minutes_before: float = field(default=0.0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.best_weights = self.best_weights or deepcopy(dict(self.model.state_dict()))

    @property
    def minutes(self) -> float:
        """Minutes of training, those before a kill among them, as far as they were saved."""
        return self._minutes_before + (time.monotonic() - self._started) / 60

    @property
    def hastened(self) -> float:
        """Share of the learning-rate schedule that is gone through; 0 where no budget has hastened it."""
        schedule = self.schedules[0]
        if schedule.last_epoch <= self.steps:
            return 0.0
        return (schedule.last_epoch - 1) / max(schedule.total_steps - 2, 1)

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def faults(self) -> list[str]:
        """The weights, and the optimizers' values, that are NaN or infinite; by name."""
        values: dict[str, Any] = dict(self.model.named_parameters())
        for place, optimizer in enumerate(self.optimizers):
            for number, kept in optimizer.state_dict()["state"].items():
                values |= {f"optimizers.{place}.{number}.{name}": value for name, value in kept.items()}
        tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]

    def parts(self) -> dict[str, Any]:
        """Everything, as nested dicts and lists of tensors and plain values that share memory with the training."""
        device = next(self.model.parameters()).device
        on_gpu = device.type == "cuda"
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "minutes": self.minutes,
            "model": dict(self.model.state_dict()),
            "best_weights": self.best_weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "random": {
                "numpy": self.rng.bit_generator.state,
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if on_gpu else None,
            },
        }

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Takes on what `parts` gave, in the objects that are there; each is as if it had never stopped.

        Raises:
            KeyError, ValueError, RuntimeError, TypeError: when the parts are not of such a training.
        """
        self.model.load_state_dict(parts["model"])
        for optimizer, kept in zip(self.optimizers, parts["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for schedule, kept in zip(self.schedules, parts["schedules"], strict=True):
            schedule.load_state_dict(kept)
        for name in _PLAIN:
            setattr(self, name, parts[name])
        device = next(self.model.parameters()).device
        self.best_weights = {name: weight.to(device) for name, weight in parts["best_weights"].items()}
        self._minutes_before, self._started = parts["minutes"], time.monotonic()
        random = parts["random"]
        self.rng.bit_generator.state = random["numpy"]
        torch.set_rng_state(random["torch"])
        if device.type == "cuda" and random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"], device)


_PLAIN = ("epoch", "step", "steps", "losses", "epochs", "best_epoch", "best_ndcg10", "best_share")
