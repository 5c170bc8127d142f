"""Items that a retriever must recommend without having met them in training."""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from data.schema import Rows
from data.vocabulary import Vocabulary
from store.errors import BadInput

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ColdItems:
    """Which items are held out of training with all their interactions.

    The two sets are disjoint: a model that was chosen by how well it places the validation items has learnt
    nothing about the test items. Asking some users for an item in validation and others for the same item in the
    test would not do, since what is to be judged is a new item and not a new user.

    Attributes:
        test: (N,) true for the items of the test.
        validation: (N,) true for the items of validation, cold while models are chosen.
    """

    test: Mask
    validation: Mask

    @classmethod
    def drawn(cls, items: Vocabulary, *, test: int, validation: int) -> Self:
        """The `test` items of smallest SHA-256 of their id, and the `validation` items that follow.

        Membership depends on the ids alone: the same items are cold whatever the order of the catalog, and an
        outside tool finds them by one line.

        Raises:
            BadInput: when no item is left to learn from.
        """
        if test + validation >= len(items):
            raise BadInput(
                f"{test:,} items for the test and {validation:,} for validation leave nothing to learn from in a "
                f"catalog of {len(items):,}: lower split.cold_items, split.test_share or split.validation_share"
            )
        order = rows_by_hash(items)
        parts = np.zeros((2, len(items)), dtype=np.bool_)
        parts[0, order[:test]] = True
        parts[1, order[test : test + validation]] = True
        return cls(parts[0], parts[1])

    @property
    def warm(self) -> Mask:
        """(N,) true for the items to learn from."""
        return ~(self.test | self.validation)

    def asked(self, part: str) -> Rows:
        """Rows of the items that are the candidates of a part ("validation" or "test") where only cold ones are."""
        return np.flatnonzero(self.test if part == "test" else self.validation).astype(np.int64)


def rows_by_hash(items: Vocabulary) -> Rows:
    """(N,) all rows, those whose id has the smallest SHA-256 first."""
    digests = [hashlib.sha256(item_id.encode()).digest() for item_id in items.ids]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
