"""Milvus behind the VectorIndex Protocol: for catalogs that outgrow a machine."""

import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from data.schema import NO_ITEM, Mask, Rows, Scores
from index.checks import check_queries, check_rows, check_vectors
from index.manifest import (
    CANARY_TOLERANCE,
    IndexManifest,
    canary_queries,
    check_canaries,
    draw_canaries,
    read_manifest,
    write_manifest,
)
from index.milvus_collection import FETCH_MOST, LISTED, MilvusCollection, MilvusConfig, listed
from store.errors import CorruptArtifact, Mismatch, MissingStep

EMBEDDED_NAME = "items"
DATABASE = "milvus.db"
SETTINGS_FILE = "milvus.json"
LOCK_FILE = "LOCK"


class MilvusIndex:
    """Item vectors in a Milvus collection, searched over the network.

    Embedded, the database is part of the index folder, and whoever loads it works on a copy: Milvus Lite
    writes to what it opens, and lets no second process in. In a cluster the folder says which collection it
    is; its name follows from the vectors, so that a build that was killed is gone on with, and two runs with
    the same vectors share one. Nothing is ever deleted there.

    Exact with the flat layout. Ties go to the lower row unless more than FETCH_MOST rows are tied.

    Args:
        vectors: (N, D) float32, N ≥ 1, which may be memory-mapped; row n is the vector of item row n.
        config: where, and in which layout.

    Raises:
        BadInput: when there are no vectors, or some hold NaN or infinity.
        MissingPackage: when pymilvus, or milvus-lite for the embedded database, is not installed.
        Unreachable: when the server does not answer in time, or refuses.
        Mismatch: when its scores are no inner products.
    """

    kind = "milvus"

    def __init__(self, vectors: Scores, config: MilvusConfig | None = None) -> None:
        check_vectors(vectors)
        config = config or MilvusConfig()
        name = EMBEDDED_NAME if not config.uri else _name_of(vectors, config)
        self._adopt(name, config, count=len(vectors), dimension=vectors.shape[1])
        if self._collection.count() != len(vectors):
            self._collection.fill(vectors)
        self._check_scores(vectors)

    def _adopt(self, name: str, config: MilvusConfig, *, count: int, dimension: int, seed: Path | None = None) -> None:
        self._count, self._dimension = count, dimension
        database = None
        if not config.uri:
            # It is deleted with the index that works on it.
            self._folder = tempfile.TemporaryDirectory(prefix="tandem-milvus-", ignore_cleanup_errors=True)
            database = Path(self._folder.name) / DATABASE
            if seed is not None:
                shutil.copytree(seed, database)
        self._collection = MilvusCollection(name, config, database)

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    def __len__(self) -> int:
        return self._count

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        check_rows(self, rows)
        found = self._collection.vectors(rows, self._dimension)
        if np.isnan(found).any():
            raise CorruptArtifact(
                f"{self._collection.where} has lost vectors of {self._collection.name}: run 'python cli.py build-index'"
            )
        return found

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search.

        Few allowed rows, or all but few, are named to the server; otherwise, as for what is excluded, more is
        fetched until enough is left. Queries that a filter has left short even so are compared with every row
        that remains to them.
        """
        check_queries(self, vectors, k, exclude, allowed)
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        eligible = np.ones(self._count, dtype=np.bool_)
        if allowed is not None:
            eligible[:] = False
            eligible[: len(allowed)] = allowed[: self._count]
        known = [np.unique(rows) for rows in exclude] if exclude is not None else None
        scores, rows = self._fetched(queries, k, known, eligible)
        for place in np.flatnonzero(rows[:, min(k, self._count) - 1] == NO_ITEM):
            left = eligible.copy()
            if known is not None:
                left[[row for row in known[place] if 0 <= row < self._count]] = False
            if left.sum() > (rows[place] != NO_ITEM).sum():
                scores[place], rows[place] = self._compared(queries[place], k, np.flatnonzero(left))
        return scores, rows

    def _fetched(self, queries: Scores, k: int, known: list[Rows] | None, eligible: Mask) -> tuple[Scores, Rows]:
        """What the server finds, fetching on until the k-th place is certain or FETCH_MOST rows have come."""
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), NO_ITEM, dtype=np.int64)
        condition, population = self._condition(eligible)
        share = eligible.sum() / max(population, 1)
        most = min(population, FETCH_MOST)
        if not share:
            return scores, rows
        lengths = [0, *map(len, known or [])]
        # One long history must not make every query fetch as much: a tenth of them may come again for more.
        fetch = min(ceil((k + 1 + np.quantile(lengths, 0.9)) / share), most)
        waiting = np.arange(len(queries))
        while len(waiting):
            found = self._collection.nearest(queries[waiting], fetch, condition)
            last = found[0][:, -1]
            barred = [known[place] for place in waiting] if known is not None else None
            kept_scores, kept_rows = _without(*found, barred, eligible, k)
            # Certain once something worse has come: whatever is tied with the k-th place has come, too.
            certain = (kept_scores[:, -1] > last) | (fetch == most)
            scores[waiting[certain]], rows[waiting[certain]] = kept_scores[certain], kept_rows[certain]
            waiting, fetch = waiting[~certain], min(2 * fetch, most)
        return scores, rows

    def _condition(self, eligible: Mask) -> tuple[str, int]:
        """The filter expression that the server is given, and how many rows it lets through."""
        there = int(eligible.sum())
        if there == self._count:
            return "", there
        if there <= LISTED:
            return listed(np.flatnonzero(eligible)), there
        if self._count - there <= LISTED:
            return listed(np.flatnonzero(~eligible), absent=True), there
        return "", self._count

    def _compared(self, query: Scores, k: int, left: Rows) -> tuple[Scores, Rows]:
        """(k,) scores and rows of one query by its inner product with every row in `left`, fetched bit by bit."""
        best_scores, best_rows = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        for start in range(0, len(left), LISTED):
            part = left[start : start + LISTED]
            scores, rows = np.append(best_scores, self.vectors(part) @ query), np.append(best_rows, part)
            best = np.lexsort((rows, -scores))[:k]
            best_scores, best_rows = scores[best], rows[best]
        missing = k - len(best_rows)
        return (
            np.pad(best_scores, (0, missing), constant_values=-np.inf),
            np.pad(best_rows, (0, missing), constant_values=NO_ITEM),
        )

    def _check_scores(self, vectors: Scores) -> None:
        """A server that stores vectors rounded, or by another metric, is found out before it serves."""
        asked = canary_queries(self._dimension)
        scores, rows = self.search(asked, min(10, self._count))
        expected = np.einsum("bd,bkd->bk", asked, np.asarray(vectors[rows], dtype=np.float32))
        if not np.allclose(scores, expected, rtol=0, atol=CANARY_TOLERANCE * max(1e-30, float(np.abs(expected).max()))):
            raise Mismatch(
                f"{self._collection.where} gives scores that are no inner products (off by "
                f"{np.abs(scores - expected).max():.2g}): set index.milvus.layout to one that keeps vectors whole"
            )

    def save(self, folder: Path, *, retriever: str, catalog: str) -> None:
        """Writes the database, or which collection it is, and the manifest into an existing folder.

        Args:
            folder: where to; the caller makes the whole folder appear at once.
            retriever: fingerprint of the model that made the vectors.
            catalog: fingerprint of the catalog whose rows they are.

        Raises:
            OSError: when the disk refuses the write.
        """
        collection = self._collection
        canaries = draw_canaries(self)
        settings = _Settings(collection=collection.name, config=collection.config)
        (folder / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if collection.database is not None:
            collection.close()
            shutil.copytree(collection.database, folder / DATABASE, ignore=shutil.ignore_patterns(LOCK_FILE))
        manifest = IndexManifest(
            kind=self.kind,
            metric="inner_product",
            dimension=self.dimension,
            count=len(self),
            bytes=sum(path.stat().st_size for path in (folder / DATABASE).rglob("*") if path.is_file()),
            faiss="",
            retriever=retriever,
            catalog=catalog,
            canaries=canaries,
        )
        write_manifest(folder, manifest)

    @classmethod
    def load(cls, folder: Path, *, retriever: str | None = None, catalog: str | None = None) -> Self:
        """The index saved in a folder.

        Args:
            folder: as given to `save`.
            retriever: the fingerprint that the index must have been made with; None: any.
            catalog: likewise for the catalog.

        Raises:
            MissingStep: when the folder holds no index, or the server has no such collection.
            CorruptArtifact: when vectors are missing, or the canaries find other rows.
            Mismatch: when the index belongs to another retriever or catalog.
            MissingPackage, Unreachable: as the class.
        """
        manifest = read_manifest(folder)
        manifest.check_fingerprints(folder, retriever=retriever, catalog=catalog)
        kept = _read_settings(folder)
        loaded = cls.__new__(cls)
        loaded._adopt(
            kept.collection,
            kept.config,
            count=manifest.count,
            dimension=manifest.dimension,
            seed=folder / DATABASE if not kept.config.uri else None,
        )
        where, found = loaded._collection.where, loaded._collection.count()
        if found < 0:
            raise MissingStep(f"{where} has no collection {kept.collection}: run 'python cli.py build-index' again")
        if found != manifest.count:
            raise CorruptArtifact(
                f"{kept.collection} of {where} holds {found:,} vectors, the manifest says {manifest.count:,}: "
                "run 'python cli.py build-index'"
            )
        check_canaries(loaded, manifest.canaries, folder)
        return loaded


class _Settings(BaseModel):
    """The content of milvus.json: which collection it is, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collection: str
    config: MilvusConfig


def _read_settings(folder: Path) -> _Settings:
    try:
        return _Settings.model_validate_json((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{folder / SETTINGS_FILE} is not readable: run 'python cli.py build-index'") from error


def _without(scores: Scores, rows: Rows, known: list[Rows] | None, eligible: Mask, k: int) -> tuple[Scores, Rows]:
    """(B, k): the first k places of lists (B, F) whose rows may be returned, then -inf and NO_ITEM."""
    kept = (rows != NO_ITEM) & eligible[np.maximum(rows, 0)]
    if known is not None:
        for place, barred in enumerate(known):
            kept[place] &= ~np.isin(rows[place], barred)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    padding = ((0, 0), (0, k - order.shape[1]))
    best = np.take_along_axis(np.where(kept, scores, np.float32(-np.inf)), order, 1)
    found = np.take_along_axis(np.where(kept, rows, NO_ITEM), order, 1)
    return (
        np.pad(best, padding, constant_values=-np.inf),
        np.pad(found, padding, constant_values=NO_ITEM),
    )


def _name_of(vectors: Scores, config: MilvusConfig) -> str:
    """Of the collection in a cluster: what it holds and how decide its name."""
    digest = sha256(f"{config.layout} {sorted(config.build.items())} {vectors.shape}".encode())
    for start in range(0, len(vectors), 100_000):
        digest.update(np.asarray(vectors[start : start + 100_000], dtype=np.float32).tobytes())
    return f"tandem_{digest.hexdigest()[:24]}"
