"""A training on disk: everything that it needs to go on after a kill as if nothing had happened."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

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


class Resumable(Protocol):
    """A training under way, as a checkpoint sees it."""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        ...

    def faults(self) -> list[str]:
        """What of it is NaN or infinite, by name."""
        ...

    def parts(self) -> dict[str, Any]:
        """Everything that it needs to go on, as nested dicts and lists of tensors and plain values."""
        ...

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Takes on what `parts` gave.

        Raises:
            KeyError, ValueError, RuntimeError, TypeError: when the parts are not of such a training.
        """
        ...


class Checkpoints:
    """The last whole checkpoint of one training, in a folder that every save replaces by one rename.

    One process writes, and holds a lock on the parent folder's run while it does.

    Args:
        folder: where it is kept; named after what is trained, not after its settings, so that a change is noticed.
        belongs_to: settings and fingerprints of the data, nested; all that must be the same for the training
            to go on, under the names by which a user sets them. What decides nothing, such as a budget, stays out.
        restart: what to do to start anew, for messages; None: what belongs to anything else is written over, as where
            the training is part of a step that has no such choice.
    """

    def __init__(
        self,
        folder: Path,
        belongs_to: Mapping[str, Any],
        *,
        config: CheckpointConfig | None = None,
        restart: str | None = "start anew with --force",
    ) -> None:
        self.folder, self.restart = folder, restart or f"delete {folder}"
        self._lenient = restart is None
        self.belongs_to: dict[str, Any] = canonical(belongs_to)
        self._every_s = (config or CheckpointConfig()).every_minutes * 60
        self._last_save = time.monotonic()

    def save_if_due(self, state: Resumable) -> bool:
        """Saves when the last time is `every_minutes` ago; says whether it did. Raises as `save`."""
        if time.monotonic() - self._last_save < self._every_s:
            return False
        self.save(state)
        return True

    def save(self, state: Resumable) -> None:
        """Replaces the checkpoint by `state`; until that is whole and on disk, the former one stays.

        Raises:
            FloatingPointError: when a weight or a value of an optimizer is NaN or infinite: from there nobody
                could go on, and the former checkpoint is kept.
            NoSpace: when the disk is full or refuses the write; the former checkpoint is kept.
        """
        if faults := state.faults():
            raise FloatingPointError(f"{', '.join(faults)} is NaN or infinite after {state.place}")
        tensors: dict[str, Tensor] = {}
        content = _packed({"belongs_to": self.belongs_to, "state": state.parts()}, "", tensors)
        with atomic_folder(self.folder) as folder:
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            manifest = {"format": FORMAT, "files": listing_of(folder)}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._last_save = time.monotonic()

    def resume(self, state: Resumable) -> bool:
        """Puts `state` where the checkpoint left off; False, and nothing changed, when there is none.

        Raises:
            CorruptArtifact: when the checkpoint is damaged.
            Mismatch: when it belongs to other settings or data, which are named, or to another model.
        """
        folder = present(self.folder)
        if not folder.exists():
            return False
        try:
            belongs_to, parts = self._read(folder)
        except (CorruptArtifact, Mismatch):
            if self._lenient:
                return False
            raise
        if changed := differences(belongs_to, self.belongs_to):
            if self._lenient:
                return False
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
