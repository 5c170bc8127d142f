"""What a run has published: a list, a check of every byte of it, and the way back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.prepared import load_prepared
from index.layout import QUANTISED
from index.manifest import read_manifest
from index.published import PublishedIndex, journal_path
from index.stored_vectors import Storage
from pipeline.run_log import RunLog
from recommend.live_items import LiveItems
from recommend.release import live_items, load_base
from store.artifacts import Release, Run, Verify
from store.errors import CorruptArtifact, TandemError
from store.releases import Published, published, roll_back

NAMED = 5
TOLERANCE = 1e-3
"""Largest relative difference between a vector that an index keeps whole and what the towers give for it."""


@dataclass(frozen=True)
class Listed:
    """A line of `index list`.

    Attributes:
        fit: "evaluation" or "final"; empty where the retriever is gone.
        items: that can be recommended.
        changes: of the journal, since its index was made.
        bytes: of index and journal.
        fault: why it can no longer be served; empty where it can.
    """

    number: int
    time: str
    current: bool
    index: str
    kind: str
    fit: str
    items: int
    changes: int
    bytes: int
    fault: str

    def told(self) -> str:
        """For people."""
        if self.fault:
            return f"{self._head()}  {self.fault}"
        return (
            f"{self._head()}  {self.kind}, {self.fit} fit, {self.items:,} items, "
            f"{self.changes:,} changes, {self.bytes / 1e6:,.1f} MB"
        )

    def _head(self) -> str:
        return f"{'*' if self.current else ' '} {self.number:>4}  {self.time}  {self.index}"


def listed(run: Run) -> list[Listed]:
    """Every release that is on record, oldest first; the last is served.

    Raises:
        CorruptArtifact: when current.json or a record cannot be read.
    """
    releases = published(run)
    return [_line(run, one, current=one is releases[-1]) for one in releases if one.release.index]


def listed_as_json(lines: Sequence[Listed]) -> list[dict[str, Any]]:
    """The same for a machine."""
    return [asdict(line) for line in lines]


def verify(run: Run, *, log: RunLog) -> list[str]:
    """Checks what is served to the last byte, and the sums and journals of every other release on record.

    Returns:
        What was found whole, a line each.

    Raises:
        CorruptArtifact: with every fault.
        MissingStep: when nothing has been published.
    """
    whole, faults = [], []
    for one in {_parts(each.release): each for each in published(run)}.values():
        try:
            opened = PublishedIndex(run, one.release, verify=Verify.FULL)
            whole.append(
                f"release {one.number}: index {one.release.index} whole, {len(opened.index.live_rows):,} vectors, "
                f"canaries as when it was built; {len(opened.changes):,} changes in its journal"
            )
        except TandemError as error:
            faults.append(f"release {one.number}: {error}")
    try:
        whole.append(_verify_current(run))
    except TandemError as error:
        faults.append(str(error))
    log.record({"event": "verified", "whole": len(whole), "faults": len(faults)})
    if faults:
        raise CorruptArtifact("\n".join([f"{run.root}: {len(faults)} faults", *(f"  - {one}" for one in faults)]))
    return whole


def go_back(run: Run, number: int | None, *, log: RunLog) -> Published:
    """Publishes an earlier release again, and says which items that shows or hides.

    Raises:
        BadInput: when there is none, or not that one.
        RunBusy: when another command is writing to the run.
        CorruptArtifact, MissingStep: when a part of it is gone or damaged.
    """
    with run.lock():
        left = run.release()
        back = roll_back(run, number)
    try:
        _tell_items(_shown(run, left), _shown(run, back.release), log)
    except TandemError as error:
        # Damage is what people go back from.
        log.say(f"which items this shows or hides cannot be told: {error}")
    log.record({"event": "rolled back", "to": back.number, "index": back.release.index})
    return back


def _tell_items(before: set[str], after: set[str], log: RunLog) -> None:
    for what, ids in (("shown again", after - before), ("no longer shown", before - after)):
        if ids:
            named = ", ".join(sorted(ids)[:NAMED]) + (", …" if len(ids) > NAMED else "")
            log.say(f"{len(ids):,} items {what}: {named}")


def _line(run: Run, one: Published, *, current: bool) -> Listed:
    release, index = one.release, one.release.index or ""
    kind, fit, items, changes, size, fault = "", "", 0, 0, 0, ""
    try:
        opened = PublishedIndex(run, release)
        kind, items = read_manifest(opened.folder).kind, len(opened.index.live_rows)
        changes, size = len(opened.changes), _bytes(opened.folder, run, release)
        fit = run.manifest("retriever", release.retriever or "")["made_from"]["fit"]
    except TandemError as error:
        fault = str(error)
    return Listed(one.number, one.time, current, index, kind, fit, items, changes, size, fault)


def _bytes(folder: Path, run: Run, release: Release) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if release.live:
        files.append(journal_path(run, release.live))
    return sum(path.stat().st_size for path in files)


def _parts(release: Release) -> tuple[str | None, ...]:
    return release.retriever, release.index, release.live


def _verify_current(run: Run) -> str:
    """That rows, items and vectors of what is served belong together."""
    opened = PublishedIndex(run, verify=Verify.FULL)
    base = load_base(run, opened, with_reranker=False)
    live = live_items(base, opened)
    dataset, index = live.over_dataset(base.dataset), opened.index
    rows = index.live_rows
    if len(dataset.catalog) != len(index) or not np.array_equal(
        rows, np.setdiff1d(np.arange(len(index)), live.removed)
    ):
        raise CorruptArtifact(
            f"the catalog has {len(dataset.catalog) - len(live.removed):,} items, the index {len(rows):,}: "
            "go back with 'python cli.py index rollback'"
        )
    wanted = live.over_retriever(base.retriever, index).item_vectors[rows]
    layout = read_manifest(opened.folder).layout
    if layout.storage is Storage.FLOAT32 and (layout.kind not in QUANTISED or layout.keep_vectors):
        off = np.abs(index.vectors(rows) - wanted).max(axis=1) > TOLERANCE * max(1.0, float(np.abs(wanted).max()))
        if off.any():
            raise CorruptArtifact(
                f"{off.sum():,} of {len(rows):,} vectors are not what the towers give: "
                f"make the index again with 'python cli.py build-index --run {run.root}'"
            )
    return f"what is served: {len(rows):,} items, rows and vectors as catalog and towers have them"


def _shown(run: Run, release: Release) -> set[str]:
    """Ids of the items that a release recommends."""
    dataset, _ = load_prepared(run.artifact("dataset", release.dataset or ""))
    opened = PublishedIndex(run, release)
    folded = LiveItems.load(opened.folder) or LiveItems.none(dataset.catalog, 0)
    ids = folded.after(opened.changes).over_dataset(dataset).catalog.vocabulary.ids
    return {ids[row] for row in opened.index.live_rows.tolist()}
