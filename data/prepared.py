"""A validated data set on disk, quick to open: plain Parquet and a manifest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.schema import ITEM_ID, RATING, TEXT, TIMESTAMP, TITLE, USER_ID, Catalog, Dataset, Disliked, Histories, Rows
from data.vocabulary import Vocabulary
from store.artifacts import Verify, check_files
from store.atomic import sha256_of
from store.errors import CorruptArtifact, MissingStep

FORMAT = 2
MANIFEST = "dataset.json"

_USER_ROW = "user_row"
_ITEM_ROW = "item_row"
_INTERACTIONS = "interactions.parquet"
_USERS = "users.parquet"
_ITEMS = "items.parquet"
_DISLIKED = "disliked.parquet"
_LENGTH = "interactions"
_REMEDY = "prepare the data again with 'python cli.py prepare'"


def save_prepared(
    folder: Path,
    dataset: Dataset,
    *,
    report: Mapping[str, Any],
    made_from: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes users.parquet, items.parquet, interactions.parquet (rows of these two, user by user) and dataset.json.

    Where something was rated too low to count, disliked.parquet, too.

    Args:
        folder: an empty folder, such as `Run.write_folder` and `Run.write_artifact` hand out.
        dataset: what to write.
        report: what loading and splitting counted, as JSON.
        made_from: configs and sources, as JSON.

    Returns:
        The manifest: format, fingerprint, counts, report, made_from, files.
    """
    log = dataset.interactions
    frame = _timed(pl.DataFrame({_USER_ROW: log.list_of_row.astype(np.int32)}), log)
    if log.ratings is not None:
        frame = frame.with_columns(pl.Series(RATING, log.ratings).fill_nan(None))
    frame.write_parquet(folder / _INTERACTIONS)
    users = pl.DataFrame({USER_ID: pl.Series(dataset.users.ids, dtype=pl.String), _LENGTH: log.lengths})
    if log.about is not None:
        users = users.with_columns(pl.Series(TEXT, log.about.tolist(), dtype=pl.String))
    users.write_parquet(folder / _USERS)
    dataset.catalog.items.write_parquet(folder / _ITEMS)
    names = [_INTERACTIONS, _USERS, _ITEMS]
    if dataset.disliked is not None:
        low = dataset.disliked
        takers = pl.Series(USER_ID, low.users.ids, dtype=pl.String)[low.interactions.list_of_row]
        _timed(takers.to_frame(), low.interactions).write_parquet(folder / _DISLIKED)
        names.append(_DISLIKED)
    sizes = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    manifest = {
        "format": FORMAT,
        "fingerprint": dataset_fingerprint(dataset),
        "users": len(dataset.users),
        "items": len(dataset.catalog),
        "interactions": len(log.item_rows),
        "report": dict(report),
        "made_from": dict(made_from),
        "files": sizes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def load_prepared(folder: Path, *, verify: Verify = Verify.SIZES) -> tuple[Dataset, dict[str, Any]]:
    """The data set of `save_prepared` and its manifest.

    Raises:
        MissingStep: when nothing has been prepared there.
        CorruptArtifact: when a file is missing, truncated, altered or unreadable.
    """
    manifest = prepared_manifest(folder, verify=verify)
    live = manifest.get("made_from", {}).get("live", {})
    try:
        dataset = replace(_read(folder), last_event=int(live.get("events", 0)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptArtifact(f"{folder} cannot be read ({error}): {_REMEDY}") from error
    return dataset, manifest


def prepared_manifest(folder: Path, *, verify: Verify = Verify.SIZES) -> dict[str, Any]:
    """The manifest of a data set, whose files are checked and not read; errors as `load_prepared`."""
    if not folder.is_dir():
        raise MissingStep(f"{folder} does not exist: make it with 'python cli.py prepare'")
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        faults = check_files(folder, manifest["files"], verify)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{folder / MANIFEST} is unreadable ({error}): {_REMEDY}") from error
    if faults:
        raise CorruptArtifact(f"{folder} is damaged ({'; '.join(faults)}): {_REMEDY}")
    return manifest


def dataset_fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits that change with any interaction, time, rating, order, id, title, text, word on
    a user or given vector; not with what was rated too low to count, of which nothing is made.
    """
    log, items = dataset.interactions, dataset.catalog.items
    digest = hashlib.sha256()
    times = log.timestamps if log.timestamps is not None else np.zeros(0, np.int64)
    arrays: list[np.ndarray] = [log.item_rows, log.offsets, times]
    if log.ratings is not None:
        arrays.append(log.ratings)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    about = [] if log.about is None else [log.about.tolist()]
    for texts in (dataset.users.ids, items[ITEM_ID], items[TITLE], items[TEXT], *about):
        digest.update(json.dumps(list(texts)).encode())
    if (vectors := dataset.catalog.vectors) is not None:
        digest.update(np.ascontiguousarray(vectors).tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path) -> Dataset:
    # Memory maps save nothing here: everything is decoded at once.
    log = pl.read_parquet(folder / _INTERACTIONS)
    users = pl.read_parquet(folder / _USERS)
    items = pl.read_parquet(folder / _ITEMS)
    offsets = np.concatenate([[0], np.cumsum(users[_LENGTH].to_numpy())]).astype(np.int64)
    ratings = log[RATING].fill_null(np.nan).to_numpy().astype(np.float32) if RATING in log.columns else None
    about = np.array(users[TEXT].to_list(), dtype=np.object_) if TEXT in users.columns else None
    histories = replace(_lists(log, offsets), ratings=ratings, about=about)
    catalog = Catalog(items, Vocabulary(items[ITEM_ID].to_list()))
    disliked = _read_disliked(folder / _DISLIKED) if (folder / _DISLIKED).exists() else None
    return Dataset(histories, Vocabulary(users[USER_ID].to_list(), noun="user"), catalog, disliked=disliked)


def _read_disliked(path: Path) -> Disliked:
    log = pl.read_parquet(path)
    counts = log.group_by(USER_ID, maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(counts["len"].to_numpy())]).astype(np.int64)
    return Disliked(_lists(log, offsets), Vocabulary(counts[USER_ID].to_list(), noun="user"))


def _timed(users: pl.DataFrame, log: Histories) -> pl.DataFrame:
    """Whose each interaction is, what was taken and, where times are known, when."""
    frame = users.with_columns(pl.Series(_ITEM_ROW, log.item_rows.astype(np.int32)))
    if log.timestamps is None:
        return frame
    times = pl.Series(TIMESTAMP, log.timestamps)
    return frame.with_columns(times.set(times == Histories.NO_TIME, None))


def _lists(log: pl.DataFrame, offsets: Rows) -> Histories:
    """What `_timed` made a table of."""
    times = None
    if TIMESTAMP in log.columns:
        times = log[TIMESTAMP].fill_null(Histories.NO_TIME).to_numpy().astype(np.int64)
    return Histories(log[_ITEM_ROW].to_numpy().astype(np.int64), offsets, times)
