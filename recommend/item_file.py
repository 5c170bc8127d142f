"""Items from a later file or request, read as those of the data set were."""

from dataclasses import dataclass
from pathlib import Path

from data.load import LoadConfig, load_items
from data.more_items import Aligned, aligned
from data.prepared import prepared_manifest
from data.schema import ITEM_ID, TITLE, VECTOR, Catalog
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


def items_in(path: Path, read: Reading, catalog: Catalog, *, where: str) -> Aligned:
    """The items of a file in the columns of a catalog.

    Args:
        read: how the catalog's own file was.
        where: names the file in errors.

    Raises:
        BadInput: with every fault of the file.
    """
    return aligned(load_items(path, read.config), catalog.items, where)


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
