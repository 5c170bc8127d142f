"""Which items a request may be answered with: a condition on columns, an allow list, a deny list."""

from dataclasses import dataclass

import numpy as np

from data.schema import Catalog, Mask
from index.filters import filter_mask
from store.errors import BadInput


@dataclass(frozen=True)
class ItemFilter:
    """As a user states it.

    Attributes:
        where: a condition on catalog columns, as `index.filters.filter_mask` reads it.
        only: item ids, separated by commas: no other items.
        exclude: item ids, separated by commas: not these.
    """

    where: str | None = None
    only: str | None = None
    exclude: str | None = None

    def mask(self, catalog: Catalog) -> Mask | None:
        """(N,) bool by row, true for items that may be shown; None for all.

        Raises:
            BadInput: when the condition cannot be used, or no item is left.
            UnknownId: naming all ids that the catalog lacks.
        """
        if self == ItemFilter():
            return None
        mask = np.ones(len(catalog), dtype=np.bool_)
        if self.where is not None:
            mask &= filter_mask(catalog.items, self.where)
        if self.only is not None:
            listed = np.zeros_like(mask)
            listed[catalog.vocabulary.rows(_ids(self.only))] = True
            mask &= listed
        if self.exclude is not None:
            mask[catalog.vocabulary.rows(_ids(self.exclude))] = False
        if not mask.any():
            raise BadInput(f"none of the {len(catalog):,} items passes the filter ({self.told}): ask for less")
        return mask

    @property
    def told(self) -> str:
        """What is asked, as options."""
        options = {"--where": self.where, "--only": self.only, "--exclude": self.exclude}
        return ", ".join(f"{name} {value!r}" for name, value in options.items() if value is not None)


ALL_ITEMS = ItemFilter()


def _ids(text: str) -> list[str]:
    return [item_id.strip() for item_id in text.split(",") if item_id.strip()]
