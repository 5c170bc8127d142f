"""What can happen to an index while it serves, as one record of a journal each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data.schema import Rows, Scores
from store.errors import CorruptArtifact

_KIND, _ROWS, _VECTORS, _BESIDE = "kind", "rows", "vectors", "beside."


class ChangeKind(IntEnum):
    """What a change does to its rows."""

    PUT = 0
    """gives them vectors: new rows, or other vectors for old ones, removed ones among them"""
    REMOVE = 1
    """takes them out of every answer; they stay allotted"""
    NOTE = 2
    """leaves their vectors as they are: only what is kept beside has changed"""


@dataclass(frozen=True)
class Change:
    """One change, whole or not at all.

    Attributes:
        rows: (n,) item rows, each once.
        vectors: (n, D) float32 for PUT; (0, D) or (0, 0) else.
        beside: named arrays that the index keeps for its caller and never looks at.
    """

    kind: ChangeKind
    rows: Rows
    vectors: Scores = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    beside: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        arrays = {
            _KIND: np.array([self.kind], dtype=np.uint8),
            _ROWS: self.rows,
            _VECTORS: self.vectors,
            **{_BESIDE + name: array for name, array in self.beside.items()},
        }
        return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """What `to_bytes` wrote.

        Raises:
            CorruptArtifact: when it is something else.
        """
        try:
            arrays = load(body)
            beside = {name.removeprefix(_BESIDE): array for name, array in arrays.items() if name.startswith(_BESIDE)}
            return cls(ChangeKind(int(arrays[_KIND][0])), arrays[_ROWS], arrays[_VECTORS], beside)
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise CorruptArtifact(
                f"a record of the journal is no change of an index ({error}): go back to an earlier release with "
                "'python cli.py index rollback'"
            ) from error
