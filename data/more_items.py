"""Items of a later file in the columns that a catalog has."""

from dataclasses import dataclass

import polars as pl

from data.schema import ITEM_ID
from store.errors import BadInput


@dataclass(frozen=True)
class Aligned:
    """A table with the columns of a catalog, in their order and types.

    Attributes:
        missing: columns that the file lacks; they are null here.
        ignored: columns of the file that the catalog lacks.
    """

    items: pl.DataFrame
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


def aligned(items: pl.DataFrame, like: pl.DataFrame, where: str) -> Aligned:
    """`items` as more rows of `like`.

    Args:
        where: names the file in errors.

    Raises:
        BadInput: with every column whose values the catalog's type cannot hold.
    """
    faults, columns = [], []
    for name, kind in like.schema.items():
        if name not in items.columns:
            columns.append(pl.Series(name, [None] * len(items), dtype=kind))
            continue
        values = items[name]
        fitting = values.cast(kind, strict=False)
        # A cast to whole numbers drops what is behind the point without a word.
        lost = values.is_not_null() & (fitting.is_null() | _rounded(values, fitting))
        if lost.any():
            ids = items[ITEM_ID].filter(lost)
            example = values.filter(lost)[0]
            faults.append(
                f"{name!r} holds {example!r} for item {ids[0]!r}"
                f"{f' and {len(ids) - 1:,} more' if len(ids) > 1 else ''}, where the catalog has {kind}"
            )
        columns.append(fitting.alias(name))
    if faults:
        raise BadInput.of(faults, where)
    missing = tuple(name for name in like.columns if name not in items.columns)
    return Aligned(pl.DataFrame(columns), missing, tuple(name for name in items.columns if name not in like.columns))


def _rounded(values: pl.Series, fitting: pl.Series) -> pl.Series:
    if values.dtype.is_float() and fitting.dtype.is_integer():
        return (values != fitting.cast(values.dtype)).fill_null(value=False)
    return pl.Series([False] * len(values), dtype=pl.Boolean)
