"""Items from a later file or request, read as those of the data set were."""

from pathlib import Path

from data.load import LoadConfig, load_items
from data.more_items import Aligned, aligned
from data.prepared import prepared_manifest
from data.schema import ITEM_ID, TITLE, VECTOR, Catalog
from store.artifacts import Release, Run


def reading(run: Run, release: Release) -> LoadConfig:
    """How the files of a release's data set were read, the template of item texts included."""
    manifest = prepared_manifest(run.artifact("dataset", release.dataset or ""))
    config = LoadConfig.model_validate(manifest["made_from"]["data"])
    return config.model_copy(update={"template": manifest["report"]["load"]["template"]})


def items_in(path: Path, config: LoadConfig, catalog: Catalog, *, where: str) -> Aligned:
    """The items of a file in the columns of a catalog.

    Args:
        config: as `reading` gives it.
        where: names the file in errors.

    Raises:
        BadInput: with every fault of the file.
    """
    return aligned(load_items(path, config), catalog.items, where)


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
