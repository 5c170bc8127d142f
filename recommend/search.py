"""Items looked up by words of their titles, and users by their ids: for people who pick one."""

import numpy as np
import polars as pl

from data.schema import ITEM_ID, TITLE, USER_ID, Dataset, Mask, Rows

_FOLDED, _TAKEN, _ROW = "folded", "taken", "row"
WORDS = 8
"""Words of a search that count."""


class Directory:
    """Of one data set.

    Args:
        dataset: whose items and users are looked up.
        available: (N,) the items that may be shown; None: all.
    """

    def __init__(self, dataset: Dataset, available: Mask | None = None) -> None:
        items = dataset.catalog.items
        taken = np.bincount(dataset.interactions.item_rows, minlength=len(items))
        self._items = pl.DataFrame(
            {
                ITEM_ID: items[ITEM_ID],
                _FOLDED: items[TITLE].str.to_lowercase(),
                _TAKEN: taken,
                _ROW: np.arange(len(items)),
            }
        )
        if available is not None:
            self._items = self._items.filter(pl.Series(available))
        self._users = pl.DataFrame({USER_ID: pl.Series(dataset.users.ids, dtype=pl.String)})

    def items(self, search: str, limit: int) -> Rows:
        """Rows of items whose id is `search` or whose title holds all its words, the most taken first."""
        words = search.lower().split()[:WORDS]
        found = pl.all_horizontal(pl.lit(True), *(pl.col(_FOLDED).str.contains(word, literal=True) for word in words))
        exact = pl.col(ITEM_ID) == search.strip()
        # In order of the catalog where items were taken equally often, so that pages do not jump.
        order = [exact.cast(pl.Int8), pl.col(_TAKEN)]
        best = self._items.filter(found | exact).sort(order, descending=True, maintain_order=True)
        return best[_ROW].head(limit).to_numpy().astype(np.int64)

    def users(self, search: str, limit: int) -> list[str]:
        """Users whose id holds `search`, those that begin with it first."""
        text = search.strip()
        found = self._users.filter(pl.col(USER_ID).str.contains(text, literal=True))
        order = pl.col(USER_ID).str.starts_with(text)
        best = found.sort(order, descending=True, maintain_order=True).head(limit)
        return [str(user_id) for user_id in best[USER_ID]]
