"""Milvus behind the VectorIndex Protocol: for catalogs that outgrow a machine."""

import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Self
from weakref import finalize

import numpy as np
from pydantic import BaseModel, ConfigDict

from data.schema import NO_ITEM, Rows, Scores
from index.checks import check_rows, refuse_unusable
from index.grouped import GroupedIndex
from index.layout import Effort, IndexKind, Layout
from index.lists import Allowed, exact_search, nothing, of_length
from index.manifest import (
    CANARY_DEPTH,
    CANARY_TOLERANCE,
    FORMAT,
    METRIC,
    IndexManifest,
    Trial,
    canary_queries,
    check_canaries,
    draw_canaries,
    write_manifest,
)
from index.milvus_collection import FETCH_MOST, LISTED, MilvusCollection, MilvusConfig, listed
from store.errors import CorruptArtifact, Mismatch, MissingStep

EMBEDDED_NAME = "items"
DATABASE = "milvus.db"
PLACE_FILE = "milvus.json"
LOCK_FILE = "LOCK"


class MilvusIndex(GroupedIndex):
    """Item vectors in a Milvus collection; exact with the flat layout.

    Embedded, the database is part of the index folder, and whoever loads it works on a copy: Milvus Lite
    writes to what it opens, and lets no second process in. In a cluster the folder says which collection it
    is; its name follows from the vectors, so that a build that was killed is gone on with, and two runs with
    the same vectors share one. Nothing is ever deleted there.

    Args:
        vectors: (N, D) float32, N ≥ 1, which may be memory-mapped; row n is the vector of item row n.
        config: where, and in which layout.

    Raises:
        BadInput: when there are no vectors, or some hold NaN or infinity.
        MissingPackage: when pymilvus, or milvus-lite for the embedded database, is not installed.
        Unreachable: when the server does not answer in time, or refuses.
        Mismatch: when its scores are no inner products.
    """

    kind = IndexKind.MILVUS
    layout, effort = Layout(kind=IndexKind.MILVUS), Effort()

    def __init__(self, vectors: Scores, config: MilvusConfig | None = None) -> None:
        refuse_unusable(vectors)
        super().__init__(*vectors.shape)
        config = config or MilvusConfig()
        self._open(_Place(collection=_name_of(vectors, config) if config.uri else EMBEDDED_NAME, config=config))
        if self._collection.count() != len(vectors):
            self._collection.fill(vectors)
        self._check_scores(vectors)

    def _open(self, place: "_Place", *, database: Path | None = None) -> None:
        """Connects; a `database` is copied before it is opened."""
        working = None
        if not place.config.uri:
            folder = tempfile.mkdtemp(prefix="tandem-milvus-")
            finalize(self, shutil.rmtree, folder, ignore_errors=True)
            working = Path(folder) / DATABASE
            if database is not None:
                shutil.copytree(database, working)
        self._place = place
        self._collection = MilvusCollection(place.collection, place.config, working)

    @property
    def searched_bytes(self) -> float:
        """Bytes for each vector of what searches go through on this machine: none of a server's."""
        return 0.0 if self._place.config.uri else 4.0 * self._dimension

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        check_rows(self, rows)
        return self.take(rows)

    def take(self, rows: Rows) -> Scores:
        """(n, D) float32, fetched from the server.

        Raises:
            CorruptArtifact: when it has lost some.
        """
        found = self._collection.vectors(rows, self._dimension)
        if np.isnan(found).any():
            raise CorruptArtifact(
                f"{self._collection.where} has lost vectors of {self._collection.name}: run 'python cli.py build-index'"
            )
        return found

    def _nearest(self, queries: Scores, fetch: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        """See GroupedIndex.

        Where a filter leaves few rows, or all but few, these are named to the server; otherwise more is fetched
        until enough is left. Queries that are short even so, as they may be in an approximate layout, and those
        that want more than a server returns, are compared here with every vector that the filter leaves.
        """
        left = None if allowed is None else allowed.rows
        condition, through = self._condition(allowed)
        share = 1.0 if allowed is None else allowed.count / through
        most = min(through, FETCH_MOST)
        if fetch > most or fetch > share * most + 1:
            return exact_search(self, queries, fetch, rows=left)
        scores, rows = nothing(len(queries), fetch)
        waiting, wider = np.arange(len(queries)), min(ceil((fetch + 1) / share), most)
        while len(waiting):
            found_scores, found_rows = self._collection.nearest(queries[waiting], wider, condition)
            last = found_scores[:, -1]
            if allowed is not None and through > allowed.count:
                found_scores, found_rows = _allowed_first(found_scores, found_rows, allowed)
            found_scores, found_rows = of_length(found_scores, found_rows, fetch)
            # Certain once something worse has come: whatever is tied with the last place has come, too.
            certain = (found_scores[:, -1] > last) | (wider == most)
            scores[waiting[certain]], rows[waiting[certain]] = found_scores[certain], found_rows[certain]
            waiting, wider = waiting[~certain], min(2 * wider, most)
        if (short := rows[:, -1] == NO_ITEM).any():
            scores[short], rows[short] = exact_search(self, queries[short], fetch, rows=left)
        return scores, rows

    def _condition(self, allowed: Allowed | None) -> tuple[str, int]:
        """The filter expression that the server is given, and how many rows it lets through."""
        if allowed is None:
            return "", self._count
        if allowed.count <= LISTED:
            return listed(allowed.rows), allowed.count
        if self._count - allowed.count <= LISTED:
            return listed(np.flatnonzero(~allowed.mask), absent=True), allowed.count
        return "", self._count

    def _check_scores(self, vectors: Scores) -> None:
        """A server that stores vectors rounded, or by another metric, is found out before it serves."""
        asked = canary_queries(self._dimension)
        scores, rows = self.search(asked, min(CANARY_DEPTH, self._count))
        expected = np.einsum("bd,bkd->bk", asked, np.asarray(vectors[rows], dtype=np.float32))
        off = float(np.abs(scores - expected).max())
        if off > CANARY_TOLERANCE * max(1e-30, float(np.abs(expected).max())):
            raise Mismatch(
                f"{self._collection.where} gives scores that are no inner products (off by {off:.2g}): it must keep "
                "whole vectors under the metric IP"
            )

    def save(self, folder: Path, *, retriever: str, catalog: str, report: Sequence[Trial] = ()) -> None:
        """Writes the database, or which collection it is, and the manifest into an existing folder.

        Args:
            folder: where to; the caller makes the whole folder appear at once.
            retriever: fingerprint of the model that made the vectors.
            catalog: fingerprint of the catalog whose rows they are.
            report: what was measured when it was built.

        Raises:
            OSError: when the disk refuses the write.
        """
        canaries = draw_canaries(self)
        (folder / PLACE_FILE).write_text(self._place.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if (database := self._collection.database) is not None:
            self._collection.close()
            shutil.copytree(database, folder / DATABASE, ignore=shutil.ignore_patterns(LOCK_FILE))
        manifest = IndexManifest(
            format=FORMAT,
            kind=self.kind,
            metric=METRIC,
            dimension=self.dimension,
            count=len(self),
            bytes=sum(path.stat().st_size for path in (folder / DATABASE).rglob("*") if path.is_file()),
            layout=self.layout,
            faiss="",
            retriever=retriever,
            catalog=catalog,
            canaries=canaries,
            report=tuple(report),
        )
        write_manifest(folder, manifest)

    @classmethod
    def rebuilt(cls, folder: Path, vectors: Scores) -> Self:
        """Other vectors where, and laid out as, the index saved in a folder has its own; errors as the class."""
        return cls(vectors, _read_place(folder).config)

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> Self:
        """The index saved in a folder with this manifest.

        Raises:
            MissingStep: when the server has no such collection.
            CorruptArtifact: when vectors are missing, or the canaries find other rows.
            MissingPackage, Unreachable: as the class.
        """
        place = _read_place(folder)
        loaded = cls.__new__(cls)
        GroupedIndex.__init__(loaded, manifest.count, manifest.dimension)
        loaded._open(place, database=folder / DATABASE)
        where, found = loaded._collection.where, loaded._collection.count()
        if found < 0:
            raise MissingStep(f"{where} has no collection {place.collection}: run 'python cli.py build-index' again")
        if found != manifest.count:
            raise CorruptArtifact(
                f"{place.collection} of {where} holds {found:,} vectors, the manifest says {manifest.count:,}: "
                "run 'python cli.py build-index'"
            )
        check_canaries(loaded, manifest.canaries, folder)
        return loaded


class _Place(BaseModel):
    """The content of milvus.json: which collection it is, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str
    config: MilvusConfig


def _read_place(folder: Path) -> _Place:
    try:
        return _Place.model_validate_json((folder / PLACE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{folder / PLACE_FILE} is not readable: run 'python cli.py build-index'") from error


def _allowed_first(scores: Scores, rows: Rows, allowed: Allowed) -> tuple[Scores, Rows]:
    """The same lists with rows that are not allowed replaced by NO_ITEM and moved behind all others."""
    barred = (rows == NO_ITEM) | ~allowed.mask[np.maximum(rows, 0)]
    order = np.argsort(barred, axis=1, kind="stable")
    scores, rows = np.where(barred, np.float32(-np.inf), scores), np.where(barred, NO_ITEM, rows)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _name_of(vectors: Scores, config: MilvusConfig) -> str:
    """Of the collection in a cluster, by what it holds and how."""
    digest = sha256(f"{config.layout} {sorted(config.build.items())} {vectors.shape}".encode())
    for start in range(0, len(vectors), 100_000):
        digest.update(np.asarray(vectors[start : start + 100_000], dtype=np.float32).tobytes())
    return f"tandem_{digest.hexdigest()[:24]}"
