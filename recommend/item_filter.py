"""Which items a request may be answered with: a condition on columns, an allow list, a deny list."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.schema import Catalog, Mask
from index.filters import FilterFault, filter_mask
from store.errors import BadInput

__all__ = ["ALL_ITEMS", "Conditions", "FilterFault", "ItemFilter"]

_LISTED = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^,]*))(?:,|$)')
FILTERS_KEPT = 64
"""Masks of conditions that are kept for the next request with the same words."""


class Conditions:
    """The masks of conditions on one catalog; equal words get one and the same mask. Safe for several threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.mask = lru_cache(maxsize=FILTERS_KEPT)(self._mask)
        """Condition → (N,) the items that meet it; FilterFault where it has a fault or nothing meets it."""

    def _mask(self, where: str) -> Mask:
        mask = filter_mask(self._catalog.items, where)
        if not mask.any():
            raise FilterFault(where, 0, f"none of the {len(self._catalog):,} items meets it: ask for less")
        return mask


@dataclass(frozen=True)
class ItemFilter:
    """As a user states it.

    Attributes:
        where: a condition on catalog columns, as `index.filters.filter_mask` reads it.
        only: item ids as `listed_ids` reads them: no other items.
        exclude: item ids as `listed_ids` reads them: not these.
    """

    where: str | None = None
    only: str | None = None
    exclude: str | None = None

    def mask(
        self, catalog: Catalog, available: Mask | None = None, *, renamed: Mapping[str, str] | None = None
    ) -> Mask | None:
        """(N,) bool by row, true for items that may be shown; None for all.

        Args:
            available: (N,) false for items that were removed; None where none was.
            renamed: as in `index.filters.filter_mask`.

        Raises:
            BadInput: when the condition cannot be used, or no item is left.
            UnknownId: naming all ids that the catalog lacks.
        """
        if self == ItemFilter():
            return None
        mask = np.ones(len(catalog), dtype=np.bool_) if available is None else available.copy()
        there = int(mask.sum())
        if self.where is not None:
            mask &= filter_mask(catalog.items, self.where, renamed=renamed)
        if self.only is not None:
            listed = np.zeros_like(mask)
            listed[catalog.vocabulary.rows(listed_ids(self.only))] = True
            mask &= listed
        if self.exclude is not None:
            mask[catalog.vocabulary.rows(listed_ids(self.exclude))] = False
        if not mask.any():
            raise BadInput(f"none of the {there:,} items passes the filter ({self.told}): ask for less")
        return mask

    @property
    def told(self) -> str:
        """What is asked, as options."""
        options = {"--where": self.where, "--only": self.only, "--exclude": self.exclude}
        return ", ".join(f"{name} {value!r}" for name, value in options.items() if value is not None)


ALL_ITEMS = ItemFilter()


def listed_ids(text: str) -> list[str]:
    """Ids separated by commas, blanks around them left out; one that holds either stands in quotation marks, as in CSV.

    The csv module cannot tell the blanks of a quoted field from those behind another, and so does not read it.
    """
    found = [(quoted.replace('""', '"'), plain.strip()) for quoted, plain in _LISTED.findall(text)]
    return [quoted or plain for quoted, plain in found if quoted or plain]
