"""Items from a later file or request, read as those of the data set were."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data.changed_columns import Before
from data.load import LoadConfig, load_items
from data.more_items import Aligned, aligned
from data.prepared import prepared_manifest
from data.schema import ITEM_ID, TEXT, TITLE, VECTOR, Catalog, brings_vectors
from data.text import template_columns
from store.artifacts import Release, Run


@dataclass(frozen=True, slots=True)
class Reading:
    """How the catalog's file of a data set was read.

    Attributes:
        config: with the template of item texts.
        titled: whether the file has titles; else they are made of its other columns.
    """

    config: LoadConfig
    titled: bool


def reading(run: Run, release: Release) -> Reading:
    """How the files of a release's data set were read."""
    manifest = prepared_manifest(run.artifact("dataset", release.dataset or ""))
    config = LoadConfig.model_validate(manifest["made_from"]["data"])
    load = manifest["report"]["load"]
    # A report of before does not say it: a template of ours then begins with the title, where there is one.
    titled = load.get("titled", bool(config.template) or f"{{{TITLE}}}" in load["template"])
    return Reading(config.model_copy(update={"template": load["template"]}), titled)


def items_in(path: Path, read: Reading, catalog: Catalog, *, where: str, before: Before | None = None) -> Aligned:
    """The items of a file in the columns of a catalog.

    Args:
        read: how the catalog's own file was.
        where: names the file in errors.
        before: ids → the catalog's rows of these items, where some of their columns are changed; None where all of an
            item is in the file.

    Raises:
        BadInput: with every fault of the file; and what `before` raises.
    """
    given = None if before is None else lambda ids: _by_file(before(ids), read)
    return aligned(load_items(path, read.config, before=given, where=where), catalog.items, where)


def empty_item(read: Reading, catalog: Catalog) -> dict[str, None]:
    """The columns of a catalog's file, with nothing in them."""
    return dict.fromkeys(_by_file(catalog.items.clear(), read).columns)


def _by_file(items: pl.DataFrame, read: Reading) -> pl.DataFrame:
    """Rows of a catalog by column of its file, but for the ids; vectors are null, and looked at by nobody.

    Where texts are made of a column `text`, what was made of it stands there: the column itself is not kept.
    """
    ours = {ITEM_ID, TITLE, TEXT, *([VECTOR] if brings_vectors(items) else [])}
    columns = {name: items[name] for name in items.columns if name not in ours}
    if read.titled:
        columns[title_column(read.config)] = items[TITLE]
    if brings_vectors(items):
        columns[vector_column(read.config)] = pl.Series([None] * len(items), dtype=pl.String)
    if TEXT in template_columns(read.config.template):
        columns[TEXT] = items[TEXT]
    return pl.DataFrame(columns)


def id_column(config: LoadConfig) -> str:
    """The column of a catalog's file that holds the ids."""
    return _column(config, ITEM_ID)


def title_column(config: LoadConfig) -> str:
    """The column of a catalog's file that holds the titles."""
    return _column(config, TITLE)


def vector_column(config: LoadConfig) -> str:
    """The column of a catalog's file that holds the vectors, where items bring them along."""
    return _column(config, VECTOR)


def _column(config: LoadConfig, name: str) -> str:
    return config.columns.get(f"catalog.{name}", config.columns.get(name, name))
