"""A file of some columns of items that a catalog has: what it tells of them, and what stays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from data import checks
from data.columns import TableKind, find_columns
from data.faults import Faults
from data.schema import ITEM_ID, TEXT, TITLE
from data.table import Table
from data.text import HEADLINES, template_columns

Before = Callable[[Sequence[str]], pl.DataFrame]
"""Item ids → what a catalog has of these items, by column of its file."""


@dataclass(frozen=True, slots=True)
class ChangedColumns:
    """A table with the columns that its file lacks.

    Attributes:
        table: those of the file, then those that it lacks, as the catalog has them.
        lacked: the latter.
    """

    table: Table
    lacked: frozenset[str]

    @classmethod
    def of(cls, table: Table, columns: Mapping[str, str], before: Before) -> "ChangedColumns":
        """`table` and what `before` has of its items; nothing of it where the ids have faults.

        Args:
            columns: the mapping by which a catalog is read.
        """
        unheard = Faults()  # whoever reads the table tells them
        found = find_columns(table, TableKind.CATALOG, columns, unheard)
        ids = checks.unique_ids(table, found[ITEM_ID], unheard) if ITEM_ID in found else None
        if ids is None:
            return cls(table, frozenset())
        known = before(ids.to_list())
        lacked = [name for name in known.columns if name not in table.columns]
        return cls(replace(table, frame=table.frame.with_columns(known[name] for name in lacked)), frozenset(lacked))

    def kept(self, template: str, found: Mapping[str, str], faults: Faults) -> set[str]:
        """Of title and text those that the file says nothing about.

        Notes a fault where a text would have to be made with a column that the catalog does not keep.

        Args:
            template: of item texts.
            found: canonical name → column of the table.
            faults: receives it.
        """
        ids = (ITEM_ID, found.get(ITEM_ID))
        parts = [name for name in template_columns(template) if name not in ids]
        told = [name for name in parts if found.get(name, name) not in self.lacked]
        if told and TEXT in self.lacked:
            named = ", ".join(map(repr, told))
            faults.add(
                self.table.path,
                f"a text is made of {named} and {TEXT!r} (template {template!r}), and the catalog keeps only what was "
                f"made of its column {TEXT!r}: give {TEXT!r}, too",
            )
        headlines = [TITLE] if TITLE in found else [*parts, *(set(HEADLINES) & set(self.table.columns))]
        stays = all(found.get(name, name) in self.lacked for name in headlines)
        return {name for name, stay in ((TEXT, not told), (TITLE, stays)) if stay}
