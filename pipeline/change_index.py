"""Items into, within and out of what a run serves, while it serves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.changed_columns import Before
from data.checks import unique_ids
from data.columns import TableKind, find_columns
from data.faults import Faults
from data.more_items import Aligned
from data.schema import ITEM_ID, Scores
from data.table import read_table
from pipeline.run_log import RunLog
from recommend.catalog import Changed, LiveCatalog
from recommend.item_file import items_in, reading
from recommend.release import encoder_of
from retrieval.encode import encode_texts
from store.artifacts import Release, Run
from store.errors import BadInput
from store.prepared import is_prepared, prepared_key
from store.releases import prune

COMPACT_FROM = 0.1
"""Share of changes over the base from which on a compaction is advised."""


def add_items(run: Run, path: Path, *, log: RunLog) -> Changed:
    """Adds the items of a file, or none of them.

    Raises:
        BadInput: with every fault of the file, or where an item is there already and differs.
        RunBusy: when another command is writing to the run.
        NoSpace: when the disk refuses the write.
        MissingStep, CorruptArtifact, Mismatch: as `load_stages`.
    """
    with run.lock():
        catalog = _open(run, log)
        changed = catalog.add(_items(run, path, catalog, log))
        return _done(catalog, changed, "added", log)


def update_items(run: Run, path: Path, *, log: RunLog) -> Changed:
    """Changes the items of a file, or none of them; errors as `add_items`, and UnknownId for items not there."""
    with run.lock():
        catalog = _open(run, log)
        changed = catalog.update(_items(run, path, catalog, log, before=catalog.now))
        return _done(catalog, changed, "updated", log)


def remove_items(run: Run, ids: Sequence[str], *, log: RunLog) -> Changed:
    """Takes items out of every answer, or none of them; errors as `update_items`."""
    if not ids:
        raise BadInput("name the items to be removed, or a file of them with --file")
    with run.lock():
        catalog = _open(run, log)
        return _done(catalog, catalog.remove(ids), "removed", log)


def compact(run: Run, *, log: RunLog) -> Release:
    """Folds all changes into a new index, publishes it, and removes what is no longer kept, see `prune`.

    Raises:
        RunBusy, NoSpace, MissingStep, CorruptArtifact, Mismatch: as `add_items`.
    """
    with run.lock():
        prepared = prepared_key(run) if is_prepared(run) else None
        catalog = _open(run, log)
        folded = len(catalog.published.changes)
        release = catalog.compact(say=log.say) if folded else catalog.published.release
        gone = prune(run, prepared=prepared)
    log.record({"event": "compacted", "index": release.index, "changes": folded, "pruned": gone})
    return release


def ids_in(path: Path) -> list[str]:
    """Item ids from a file: one a line in .txt, else the column item_id of CSV, Parquet or JSONL.

    Raises:
        BadInput: when it cannot be read, has no such column, or an id stands twice.
    """
    if path.suffix == ".txt":
        try:
            ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} cannot be read ({error}): give a file of one item id a line") from error
        return [one for one in ids if one]
    table, faults = read_table(path), Faults()
    found = find_columns(table, TableKind.CATALOG, {}, faults)
    ids_found = unique_ids(table, found[ITEM_ID], faults) if ITEM_ID in found else None
    faults.raise_all()
    assert ids_found is not None
    return [str(one) for one in ids_found]


def encoder(run: Run, release: Release, log: RunLog, texts: Sequence[str]) -> Scores:
    """(n, E) vectors of new texts, by the encoder of a release, loaded for this."""
    log.say(f"reading {len(texts):,} item texts")
    model, settings = encoder_of(run, release)
    return np.asarray(encode_texts(model, texts, settings))


def _open(run: Run, log: RunLog) -> LiveCatalog:
    return LiveCatalog(run, lambda texts: encoder(run, run.release(), log, texts))


def _items(run: Run, path: Path, catalog: LiveCatalog, log: RunLog, *, before: Before | None = None) -> Aligned:
    """The file's items, read as those of the data set were, in the columns that its catalog has.

    Args:
        before: gives what the catalog has of them; None where they are new.
    """
    read = reading(run, catalog.published.release)
    found = items_in(path, read, catalog.catalog, where=str(path), before=before)
    if found.missing:
        what = "null" if before is None else "left as they are"
        log.say(f"columns that {path} lacks, {what}: {', '.join(found.missing)}")
    if found.ignored:
        log.say(f"columns that the catalog lacks, ignored: {', '.join(found.ignored)}")
    return found


def _done(catalog: LiveCatalog, changed: Changed, what: str, log: RunLog) -> Changed:
    counts = {what: len(changed.ids), "unchanged": len(changed.unchanged), "read": changed.read}
    log.record({"event": "items", **counts})
    share = catalog.published.index.delta_share
    if share >= COMPACT_FROM:
        log.say(f"changes now come to {share:.0%} of the index: 'python cli.py index compact' makes it fast again")
    return changed
