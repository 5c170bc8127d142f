"""The index that a run serves, followed through its changes and releases, by one writer and any number of readers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.schema import Rows, Scores
from index.approximate import ApproximateIndex
from index.build import IndexConfig, Planned, plan_again
from index.changes import Change, ChangeKind
from index.faiss_index import FlatIndex, load_index
from index.gpu import replicated
from index.journal import Journal, Mark
from index.layout import IndexKind, default_layout
from index.live import LiveIndex
from index.manifest import read_manifest
from index.milvus_index import MilvusIndex
from store.artifacts import CURRENT, Release, Run, Verify
from store.errors import BadInput, CorruptArtifact, MissingStep
from store.releases import JOURNAL, LIVE

RESIZED_BY = 2
"""From this factor on an approximate index is laid out and measured for its new number of vectors."""

SLOTS = "slots.safetensors"
"""In the folder of an index whose slots are not simply the rows 0, 1, 2, …: one that was compacted."""


class Fresh(StrEnum):
    """What a look at the run has brought."""

    SAME = "same"
    CHANGED = "changed"
    """changes of the same index, already applied"""
    REPLACED = "replaced"
    """another release"""


@dataclass(frozen=True)
class _Opened:
    """A base and its journal as one process sees them."""

    release: Release
    folder: Path
    index: LiveIndex
    journal: Journal | None
    mark: Mark | None = None
    changes: tuple[Change, ...] = ()


class PublishedIndex:
    """What current.json names; a search sees one release and one state of its changes from beginning to end.

    Reading takes no lock. Writing takes the run's, so that a second writer is refused.

    Args:
        run: the run directory.
        release: another release than the published one; it is then never refreshed.
        verify: how far the base is checked when it is opened.

    Raises:
        MissingStep: when the run has published no index.
        CorruptArtifact: when index or journal are damaged.
        Mismatch: when they do not belong together, or a newer version wrote them.
    """

    def __init__(self, run: Run, release: Release | None = None, *, verify: Verify = Verify.SIZES) -> None:
        self.run, self._verify = run, verify
        self._follows = release is None
        self._signature = self._look()
        self._opened: _Opened | None = None
        self._opened = self._open(release) if release is not None else self._open_current()

    @property
    def _now(self) -> _Opened:
        assert self._opened is not None
        return self._opened

    @property
    def release(self) -> Release:
        """What is served."""
        return self._now.release

    @property
    def index(self) -> LiveIndex:
        """The index as it was at the last refresh."""
        return self._now.index

    @property
    def folder(self) -> Path:
        """Of the base."""
        return self._now.folder

    @property
    def changes(self) -> Sequence[Change]:
        """All that has changed since the base was made, oldest first, without the vectors, which the index has."""
        return self._now.changes

    def refresh(self) -> Fresh:
        """Takes in what other processes have published since; some microseconds where that is nothing.

        Raises:
            CorruptArtifact, Mismatch: as when it was opened; what was served until then still is.
        """
        before = self._now
        while True:
            signature = self._look()
            try:
                if self._follows and signature != self._signature:
                    self._opened = self._open_current()
                    self._signature = signature
                else:
                    self._opened = _caught_up(before)
                break
            except MissingStep:
                # Its journal may have been pruned since the look: then there is another release.
                if not self._follows or self._look() == signature:
                    raise
        if self.release != before.release:
            return Fresh.REPLACED
        return Fresh.SAME if self._now.mark == before.mark else Fresh.CHANGED

    def add(self, vectors: Scores, **beside: Any) -> Rows:
        """Gives new rows to vectors (n, D), durably, and returns them.

        Raises:
            RunBusy: when another process is writing to the run.
            NoSpace: when the disk refuses the write; nothing has changed then.
            Mismatch, BadInput: as LiveIndex.refuse.
        """
        with self.run.lock():
            self.refresh()
            rows = self.index.new_rows(len(vectors))
            self.change(Change(ChangeKind.PUT, rows, vectors, beside))
        return rows

    def update(self, rows: Rows, vectors: Scores, **beside: Any) -> None:
        """Gives other vectors to rows that were allotted before, removed ones among them; errors as `add`."""
        with self.run.lock():
            self.refresh()
            if (rows >= len(self.index)).any():
                raise BadInput(f"row {rows.max():,} was never allotted, the last one is {len(self.index) - 1:,}")
            self.change(Change(ChangeKind.PUT, rows, vectors, beside))

    def remove(self, rows: Rows) -> None:
        """Takes rows out of every answer; errors as `add`, and UnknownId for rows that are not there."""
        self.change(Change(ChangeKind.REMOVE, rows))

    def change(self, *changes: Change) -> None:
        """Writes changes of different rows to the journal, all or none; once this returns, no kill can undo them.

        Raises:
            RunBusy, NoSpace, Mismatch, BadInput, UnknownId: as `add` and `remove`.
        """
        with self.run.lock():
            self.refresh()
            for change in changes:
                self.index.refuse(change)
            journal = self._now.journal or self._begin_journal()
            journal.append(*(change.to_bytes() for change in changes))
            self._opened = _caught_up(self._now)

    def compact(
        self,
        *,
        vectors: Callable[[Rows], Scores] | None = None,
        queries: Callable[[int], Scores] | None = None,
        write_beside: Callable[[Path], None] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Release:
        """Folds the changes into a new base, laid out as the old one, and publishes it by one rename.

        The canaries of the new base are asked before that.

        Args:
            vectors: gives the vectors of rows; None: as the index has them, which a compressed one has only nearly.
            queries: gives vectors of so many users, for when effort is measured anew; None: vectors stand in.
            write_beside: puts into the new folder what else its caller folds.
            say: told what was measured, where it was.

        Raises:
            BadInput: when no row is left to be indexed.
            RunBusy, NoSpace: as `add`; what was published before is still served.
        """
        with self.run.lock():
            self.refresh()
            release, index = self.release, self.index
            rows = index.live_rows
            if not len(rows):
                raise BadInput("every item has been removed: an index needs at least one")
            manifest = read_manifest(self.folder)
            config = _measured_by(self._made_from())
            made = rebuilt(
                self.folder,
                (vectors or index.vectors)(rows),
                config,
                queries=lambda: np.zeros((0, 0), np.float32) if queries is None else queries(config.sample_users),
                say=say,
            )

            def write(folder: Path) -> None:
                made.index.save(folder, retriever=manifest.retriever, catalog=manifest.catalog, report=made.report)
                save_slots(folder, rows, len(index))
                if write_beside is not None:
                    write_beside(folder)

            key = self.run.write_artifact("index", self._folded_from(), write)
            load_index(self.run.artifact("index", key, verify=Verify.FULL))
            self.run.publish(**{**asdict(release), "index": key, "live": None})
            self.refresh()
        return self.release

    def _made_from(self) -> dict[str, Any]:
        made_from: dict[str, Any] = self.run.manifest("index", self.release.index or "")["made_from"]
        return made_from

    def _folded_from(self) -> dict[str, Any]:
        opened = self._now
        folded = {"index": opened.release.index, "live": opened.release.live, "records": len(opened.changes)}
        return {**self._made_from(), "folded": folded}

    def _begin_journal(self) -> Journal:
        """The first change since the index was made: from now on its release has a journal."""
        name = write_journal(self.run, ())
        self.run.publish(live=name)
        self.refresh()
        return Journal(journal_path(self.run, name))

    def _look(self) -> tuple[int, ...]:
        """What changes whenever current.json is replaced."""
        try:
            found = (self.run.root / CURRENT).stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _open_current(self) -> _Opened:
        while True:
            release = self.run.release()
            try:
                return self._open(release)
            except (MissingStep, CorruptArtifact):
                # It may have been pruned between a look at its name and a look into its folder.
                if self.run.release() == release:
                    raise

    def _open(self, release: Release) -> _Opened:
        if release.index is None:
            root = self.run.root
            raise MissingStep(f"{root} has published no index: make it with 'python cli.py build-index --run {root}'")
        journal = Journal(journal_path(self.run, release.live)) if release.live else None
        before = self._opened
        if before is not None and before.release.index == release.index and before.release.live in (None, release.live):
            return _caught_up(replace(before, release=release, journal=journal))
        folder = self.run.artifact("index", release.index, verify=self._verify)
        # Whether it is this retriever's is asked by whoever opens that, too, who can name the command that mends it.
        return _caught_up(_Opened(release, folder, open_live(folder), journal))


def _caught_up(opened: _Opened) -> _Opened:
    """With what its journal has gained; the same object where that is nothing."""
    if opened.journal is None or opened.mark == opened.journal.mark():
        return opened
    bodies, mark = opened.journal.read(opened.mark)
    new = list(map(Change.from_bytes, bodies))
    opened.index.apply(new)
    seen = [replace(change, vectors=change.vectors[:0]) for change in new]
    return replace(opened, mark=mark, changes=(*opened.changes, *seen))


def write_journal(run: Run, changes: Iterable[Change]) -> str:
    """A new journal that begins with these changes; its name, to be published with the index that they belong to.

    Raises:
        NoSpace: when the disk refuses the write.
    """
    number, _ = run.numbered_release()
    name = next(name for n in range(number + 1, 10**9) if not journal_path(run, name := f"{n:06d}").exists())
    journal = Journal.create(journal_path(run, name))
    for change in changes:
        journal.append(change.to_bytes())
    return name


def read_changes(run: Run, release: Release) -> list[Change]:
    """What was changed since the index of a release was made, oldest first, without looking at that index.

    Raises:
        MissingStep, CorruptArtifact, Mismatch: as Journal.read.
    """
    if release.live is None:
        return []
    bodies, _ = Journal(journal_path(run, release.live)).read()
    return list(map(Change.from_bytes, bodies))


def journal_path(run: Run, name: str) -> Path:
    """Where the journal of that name is."""
    return run.root / LIVE / f"{name}{JOURNAL}"


def rebuilt(
    folder: Path,
    vectors: Scores,
    config: IndexConfig,
    *,
    queries: Callable[[], Scores],
    say: Callable[[str], None],
) -> Planned:
    """An index of vectors, laid out and searched as the one in a folder.

    From RESIZED_BY times as many on, or as few, it has as many lists as suit them, and its effort is measured anew:
    what found enough in other lists may be too little, or too much.

    Args:
        config: recall target and sample.
        queries: asked only where something is measured, see `plan_again`.

    Raises:
        MissingPackage, Unreachable: for an index in Milvus, as that.
    """
    like = read_manifest(folder)
    layout, count = like.layout, len(vectors)
    if layout.kind is IndexKind.MILVUS:
        return Planned(MilvusIndex.rebuilt(folder, vectors), like.report)
    if layout.kind is IndexKind.FLAT:
        return Planned(FlatIndex(vectors, layout.storage), like.report)
    if like.count / RESIZED_BY < count < like.count * RESIZED_BY:
        return Planned(ApproximateIndex.build(vectors, layout, effort=like.effort), like.report)
    lists = default_layout(layout.kind, count=count, dimension=like.dimension).lists
    planned = plan_again(vectors, queries(), layout.model_copy(update={"lists": lists}), config, say=say)
    return Planned(planned.index, (*planned.report, *like.report[1:]))


def _measured_by(made_from: dict[str, Any]) -> IndexConfig:
    """What an index was made to find, by the settings that it was made from."""
    asked = made_from.get("config", {})
    names = ("recall_target", "recall_at", "sample_users")
    return IndexConfig.model_validate({name: asked[name] for name in names if name in asked})


def open_live(folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> LiveIndex:
    """The index in a folder as the base of a live one; arguments and errors as `load_index`."""
    base = replicated(load_index(folder, retriever=retriever, catalog=catalog))
    path = folder / SLOTS
    if not path.exists():
        return LiveIndex(base)
    try:
        saved = load_file(path)
        rows, allotted = saved["rows"], int(saved["allotted"][0])
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise CorruptArtifact(
            f"{path} cannot be read ({error}): make it again with 'python cli.py build-index'"
        ) from error
    if len(rows) != len(base):
        raise CorruptArtifact(
            f"{path} has {len(rows):,} rows for {len(base):,} vectors: make it again with 'python cli.py build-index'"
        )
    return LiveIndex(base, rows=rows, allotted=allotted)


def save_slots(folder: Path, rows: Rows, allotted: int) -> None:
    """Writes which item row each slot holds, and how many rows have been given out."""
    save_file({"rows": np.ascontiguousarray(rows), "allotted": np.array([allotted])}, folder / SLOTS)
