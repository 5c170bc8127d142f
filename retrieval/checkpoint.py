"""A training on disk: everything that it needs to go on after a kill as if nothing had happened."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from store.artifacts import MANIFEST, Verify, check_files, listing_of, read_manifest
from store.atomic import atomic_folder, present
from store.errors import CorruptArtifact, Mismatch
from store.fingerprint import canonical

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"
_ABSENT = object()


class CheckpointConfig(BaseModel):
    """How often a training is put on disk; no part of what it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_minutes: float = Field(
        5.0, ge=0, description="minutes between checkpoints within an epoch; each epoch ends with one in any case"
    )


@dataclass
class TrainingState:
    """What a training consists of besides its settings and data; changed in place as it goes on.

    Attributes:
        rng: draws negatives; dropout draws from torch's global generator, which is kept, too. The order of an
            epoch is not: draw it from a generator of its own, seeded by the epoch, and a resumed epoch has it again.
        epoch: whole epochs done.
        step: steps done of the epoch under way.
        losses: one a step of the epoch under way.
        epochs: one record a finished epoch, of plain values.
        best_weights: the model's state of the best epoch; at first, that of the start.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    schedules: Sequence[OneCycleLR]
    rng: np.random.Generator
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_ndcg10: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    _minutes_before: float = field(default=0.0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.best_weights = self.best_weights or deepcopy(dict(self.model.state_dict()))

    @property
    def minutes(self) -> float:
        """Minutes of training, those before a kill among them, as far as they were saved."""
        return self._minutes_before + (time.monotonic() - self._started) / 60

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


_PLAIN = ("epoch", "step", "losses", "epochs", "best_epoch", "best_ndcg10")


class Checkpoints:
    """The last whole checkpoint of one training, in a folder that every save replaces by one rename.

    One process writes, and holds a lock on the parent folder's run while it does.

    Args:
        folder: where it is kept; named after what is trained, not after its settings, so that a change is noticed.
        belongs_to: settings and fingerprints of the data, nested; all that must be the same for the training
            to go on, under the names by which a user sets them. What decides nothing, such as a budget, stays out.
        restart: what to do to start anew, for messages.
    """

    def __init__(
        self,
        folder: Path,
        belongs_to: Mapping[str, Any],
        *,
        config: CheckpointConfig | None = None,
        restart: str = "start anew with --force",
    ) -> None:
        self.folder, self.restart = folder, restart
        self.belongs_to: dict[str, Any] = canonical(belongs_to)
        self._every_s = (config or CheckpointConfig()).every_minutes * 60
        self._last_save = time.monotonic()

    def save_if_due(self, state: TrainingState) -> bool:
        """Saves when the last time is `every_minutes` ago; says whether it did. Raises as `save`."""
        if time.monotonic() - self._last_save < self._every_s:
            return False
        self.save(state)
        return True

    def save(self, state: TrainingState) -> None:
        """Replaces the checkpoint by `state`; until that is whole and on disk, the former one stays.

        Raises:
            FloatingPointError: when a weight or a value of an optimizer is NaN or infinite: from there nobody
                could go on, and the former checkpoint is kept.
            NoSpace: when the disk is full or refuses the write; the former checkpoint is kept.
        """
        if faults := state.faults():
            where = f"step {state.step} of epoch {state.epoch + 1}" if state.step else f"epoch {state.epoch}"
            raise FloatingPointError(f"{', '.join(faults)} is NaN or infinite after {where}")
        tensors: dict[str, Tensor] = {}
        content = _packed({"belongs_to": self.belongs_to, "state": state.parts()}, "", tensors)
        with atomic_folder(self.folder) as folder:
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            manifest = {"format": FORMAT, "files": listing_of(folder)}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._last_save = time.monotonic()

    def resume(self, state: TrainingState) -> bool:
        """Puts `state` where the checkpoint left off; False, and nothing changed, when there is none.

        Raises:
            CorruptArtifact: when the checkpoint is damaged.
            Mismatch: when it belongs to other settings or data, which are named, or to another model.
        """
        folder = present(self.folder)
        if not folder.exists():
            return False
        belongs_to, parts = self._read(folder)
        if changed := differences(belongs_to, self.belongs_to):
            raise Mismatch(
                f"{folder} holds an unfinished training with other settings or data ({'; '.join(changed)}): "
                f"change them back to go on with it, or {self.restart}"
            )
        try:
            state.restore(parts)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split("\n")[:2]).replace("\t", "")  # torch lists every weight
            raise Mismatch(f"{folder} holds the training of another model ({first}): {self.restart}") from error
        self._last_save = time.monotonic()
        return True

    def remove(self) -> None:
        """Forgets the training, finished or not."""
        gone = self.folder.with_name(f"{self.folder.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        while (found := present(self.folder)).exists():
            # Renamed first, so that a kill leaves the whole of it or nothing under its name.
            found.rename(gone)
            shutil.rmtree(gone)

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the checkpoint belongs to, and its parts; every byte is checked first."""
        manifest = read_manifest(folder, self.restart)
        if manifest.get("format") != FORMAT:
            raise Mismatch(
                f"{folder} has format {manifest.get('format')}, this version knows {FORMAT}: go on with the version "
                f"that wrote it, or {self.restart}"
            )
        try:
            if faults := check_files(folder, manifest["files"], Verify.FULL):
                raise ValueError("; ".join(faults))
            content = json.loads((folder / STATE).read_text(encoding="utf-8"))
            unpacked = _unpacked(content, load_file(folder / TENSORS))
            return unpacked["belongs_to"], unpacked["state"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CorruptArtifact(f"the checkpoint {folder} is damaged ({error}): {self.restart}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`dotted.name old → new` for every leaf of two nested tables that is not the same in both."""
    before, after = leaves(old), leaves(new)
    return [
        f"{name} {_told(before.get(name, _ABSENT))} → {_told(after.get(name, _ABSENT))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def leaves(table: Mapping[str, Any], *, separator: str = ".") -> dict[str, Any]:
    """Every value of a nested table that is no table itself, or an empty one, under the names that lead there."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        inner = leaves(value, separator=separator) if isinstance(value, Mapping) else {}
        flat |= {f"{name}{separator}{rest}": leaf for rest, leaf in inner.items()} or {name: value}
    return flat


def _told(value: Any) -> str:
    return "(not there)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, in which `{"$tensor": name}` stands for what was put in `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = _storable(value, tensors)
        return {"$tensor": name}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_packed(entry, f"{name}.{place}", tensors) for place, entry in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": _packed(list(value), name, tensors)}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")
    inner = {key: _packed(entry, f"{name}.{key}".lstrip("."), tensors) for key, entry in value.items()}
    # Optimizers number their weights, and JSON knows no numbers as keys.
    return inner if all(isinstance(key, str) for key in inner) else {"$pairs": [list(pair) for pair in inner.items()]}


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_packed` was given."""
    if isinstance(value, list):
        return [_unpacked(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        # A copy: what was loaded is a view of the file, and optimizers go on to write into what they are given.
        return tensors[value["$tensor"]].clone()
    if "$tuple" in value:
        return tuple(_unpacked(value["$tuple"], tensors))
    pairs = value["$pairs"] if "$pairs" in value else value.items()
    return {key: _unpacked(entry, tensors) for key, entry in pairs}


def _storable(tensor: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """On the CPU, in one piece, and sharing memory with nothing in `stored`, which safetensors would refuse."""
    found = tensor.detach().cpu().contiguous()
    memory = found.untyped_storage().data_ptr()
    shared = any(other.untyped_storage().data_ptr() == memory for other in stored.values())
    return found.clone() if shared and found.numel() else found
