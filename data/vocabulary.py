"""Public ids and our rows: `item_id: str` is the user's, `item_row: int` is ours."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from store.errors import BadInput, UnknownId


class Vocabulary:
    """A fixed, ordered set of opaque string ids; the place of an id is its row.

    Raises:
        BadInput: when an id stands twice.
    """

    def __init__(self, ids: Iterable[str], *, noun: str = "item") -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self.noun = noun
        if len(self._rows) != len(self.ids):
            raise BadInput(f"{len(self.ids) - len(self._rows)} {noun} ids stand twice; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, public_id: object) -> bool:
        return public_id in self._rows

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {public_id: row for row, public_id in enumerate(self.ids)}

    def row(self, public_id: str) -> int:
        """The row of one id.

        Raises:
            UnknownId: when the id is not in the vocabulary.
        """
        found = self._rows.get(public_id)
        if found is None:
            raise UnknownId(f"{self.noun} {public_id!r} is not among the {len(self.ids):,} known {self.noun}s")
        return found

    def rows(self, public_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rows of many ids; all that are unknown are named in one error."""
        unknown = [public_id for public_id in public_ids if public_id not in self._rows]
        if unknown:
            named = ", ".join(repr(public_id) for public_id in unknown[:10])
            raise UnknownId(f"{len(unknown)} of {len(public_ids)} {self.noun}s are unknown: {named}")
        return np.array([self._rows[public_id] for public_id in public_ids], dtype=np.int64)
