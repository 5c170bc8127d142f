"""One collection of vectors in Milvus, embedded or in a cluster; the only file that talks to pymilvus."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import finalize

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from data.schema import NO_ITEM, Rows, Scores
from store.errors import MissingPackage, Unreachable

TOKEN_VARIABLE = "MILVUS_TOKEN"
ROW, VECTOR = "row", "vector"

LISTED = 2_000
"""Rows named in one filter expression; Milvus Lite needs .1 s to parse so many."""
FETCH_MOST = 16_384
"""Hits for one query that a Milvus server will return."""
HITS_AT_ONCE = 200_000
"""Hits in one answer, all queries together."""
WRITE_BYTES = 16 * 2**20
"""Vectors in one message; servers take 64 MB."""


class MilvusLayout(StrEnum):
    """How Milvus lays vectors out: those that keep them whole, so that scores are true inner products.

    Milvus Lite takes the names of others, too, and fails later without a word.
    """

    FLAT = "flat"
    HNSW = "hnsw"
    IVF_FLAT = "ivf_flat"


BUILD = {
    MilvusLayout.FLAT: {},
    MilvusLayout.HNSW: {"M": 32, "efConstruction": 200},
    MilvusLayout.IVF_FLAT: {"nlist": 1024},
}
SEARCH = {MilvusLayout.FLAT: {}, MilvusLayout.HNSW: {"ef": 256}, MilvusLayout.IVF_FLAT: {"nprobe": 32}}


class MilvusConfig(BaseModel):
    """Where and how Milvus keeps the item vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(
        "",
        description=f"of a cluster, as http://host:19530, its token in {TOKEN_VARIABLE}; empty: embedded, in the run",
    )
    layout: MilvusLayout = Field(MilvusLayout.FLAT, description="flat is exact; hnsw and ivf_flat are approximate")
    build: dict[str, int] = Field({}, description="parameters of the layout by Milvus's names, such as M or nlist")
    search: dict[str, int] = Field({}, description="parameters of a search by Milvus's names, such as ef or nprobe")
    timeout_s: float = Field(10.0, gt=0, description="seconds that a server is given to answer")
    build_minutes: float = Field(60.0, gt=0, description="minutes that a server is given to build and load")

    @field_validator("uri")
    @classmethod
    def _is_a_bare_address(cls, uri: str) -> str:
        if not uri:
            return uri
        parts = urlsplit(uri)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{uri!r} is no address of a Milvus server: write http://host:19530, or leave it empty")
        if parts.username or parts.password:
            raise ValueError(f"the address holds a password, which would be kept in config.toml: set {TOKEN_VARIABLE}")
        return uri


class MilvusCollection:
    """Vectors by row in one collection; opened when first used, and again after `close`; several threads may ask.

    Args:
        name: of the collection.
        config: where the server is.
        database: file of the embedded database; None: the server of `config.uri`.
    """

    def __init__(self, name: str, config: MilvusConfig, database: Path | None) -> None:
        self.name, self.config, self.database = name, config, database
        self.where = f"Milvus at {config.uri}" if database is None else f"the embedded Milvus in {database}"
        self._opening = threading.Lock()
        self._client: Any = None
        self._closing: finalize[..., Any] | None = None

    def fill(self, vectors: Scores) -> None:
        """Writes (N, D) vectors under their rows, then builds the index over them.

        Rows that an earlier, killed attempt has written are written over.

        Raises:
            MissingPackage: when pymilvus, or milvus-lite for the embedded database, is not installed.
            Unreachable: when the server does not answer in time, or refuses.
        """
        from pymilvus import DataType

        with self._answering(self.config.build_minutes * 60) as (client, limit):
            if not client.has_collection(self.name, **limit):
                schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field(ROW, DataType.INT64, is_primary=True)
                schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=vectors.shape[1])
                client.create_collection(self.name, schema=schema, consistency_level="Strong", **limit)
            at_once = max(1, WRITE_BYTES // (4 * vectors.shape[1]))
            for start in range(0, len(vectors), at_once):
                batch = np.asarray(vectors[start : start + at_once], dtype=np.float32)
                client.upsert(self.name, [{ROW: start + i, VECTOR: v} for i, v in enumerate(batch)], **limit)
            client.flush(self.name, **limit)
            if not client.list_indexes(self.name, **limit):
                layout, index = self.config.layout, client.prepare_index_params()
                parameters = {**BUILD[layout], **self.config.build}
                index.add_index(VECTOR, index_type=layout.upper(), metric_type="IP", params=parameters)
                client.create_index(self.name, index, **limit)
            client.load_collection(self.name, **limit)

    def count(self) -> int:
        """How many vectors it holds; 0 while it is not yet indexed, -1 where there is no such collection."""
        with self._answering(self.config.timeout_s) as (client, limit):
            if not client.has_collection(self.name, **limit):
                return -1
            if not client.list_indexes(self.name, **limit):
                return 0
            (found,) = client.query(self.name, filter="", output_fields=["count(*)"], **limit)
            return int(found["count(*)"])

    def nearest(self, queries: Scores, fetch: int, condition: str) -> tuple[Scores, Rows]:
        """The best `fetch` rows for each query, best first, ties by lower row; -inf and NO_ITEM where it finds fewer.

        Args:
            queries: (B, D) float32.
            fetch: at most FETCH_MOST.
            condition: a filter expression; empty: none.
        """
        scores = np.full((len(queries), fetch), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), fetch), NO_ITEM, dtype=np.int64)
        parameters = {**SEARCH[self.config.layout], **self.config.search}
        if "ef" in parameters:
            parameters["ef"] = max(parameters["ef"], fetch)
        at_once = max(1, HITS_AT_ONCE // fetch)
        with self._answering(self.config.timeout_s) as (client, limit):
            for start in range(0, len(queries), at_once):
                answers = client.search(
                    self.name,
                    data=list(queries[start : start + at_once]),
                    anns_field=VECTOR,
                    limit=fetch,
                    filter=condition,
                    output_fields=[ROW],
                    search_params={"metric_type": "IP", "params": parameters},
                    **limit,
                )
                for place, hits in enumerate(answers, start=start):
                    scores[place, : len(hits)] = [hit["distance"] for hit in hits]
                    rows[place, : len(hits)] = [hit[ROW] for hit in hits]
        order = np.lexsort((rows, -scores), axis=-1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def vectors(self, rows: Rows, dimension: int) -> Scores:
        """(n, D) float32, the vectors stored at `rows`; NaN where there is none."""
        wanted, place = np.unique(rows, return_inverse=True)
        found = np.full((len(wanted), dimension), np.nan, dtype=np.float32)
        with self._answering(self.config.timeout_s) as (client, limit):
            for start in range(0, len(wanted), LISTED):
                part = wanted[start : start + LISTED]
                for hit in client.query(self.name, filter=listed(part), output_fields=[ROW, VECTOR], **limit):
                    found[np.searchsorted(wanted, hit[ROW])] = hit[VECTOR]
        return found[place]

    def close(self) -> None:
        """Ends the connection and, of an embedded database, its server: its files are then whole and at rest."""
        with self._opening:
            if self._closing is not None:
                self._closing()
            self._client = self._closing = None

    @contextmanager
    def _answering(self, seconds: float) -> Iterator[tuple[Any, dict[str, float]]]:
        """An open client and the time limit of a call; what goes wrong in the block is told in our words."""
        exceptions = _pymilvus().exceptions
        try:
            with self._opening:
                if self._client is None:
                    self._client = self._open()
                client = self._client
            yield client, {"timeout": seconds}
        except exceptions.MilvusException as error:
            reason = str(error.message).strip().partition("\n")[0]
            raise Unreachable(
                f"{self.where} refuses, or does not answer within {seconds:g} s ({reason}): check that the server "
                f"runs, index.milvus.uri and, where it wants one, the token in {TOKEN_VARIABLE}"
            ) from error

    def _open(self) -> Any:
        token, limit = os.environ.get(TOKEN_VARIABLE, ""), {"timeout": self.config.timeout_s}
        place = self.config.uri if self.database is None else str(self.database)
        if self.database is not None and find_spec("milvus_lite") is None:
            raise _missing("milvus_lite")
        client = _pymilvus().MilvusClient(place, token=token, **limit)
        self._closing = finalize(self, _close, client, self.database)
        if client.has_collection(self.name, **limit) and client.list_indexes(self.name, **limit):
            # Until it is in the server's memory nothing can be searched.
            client.load_collection(self.name, timeout=self.config.build_minutes * 60)
        return client


def listed(rows: Rows, *, absent: bool = False) -> str:
    """The expression that lets these rows through, or with `absent` all but these."""
    return f"{ROW} {'not in' if absent else 'in'} {rows.tolist()}"


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise _missing("pymilvus") from error
    # They log every error with a traceback of its own before they raise it, and calls that Milvus Lite lacks.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def _missing(package: str) -> MissingPackage:
    return MissingPackage(
        f"index.kind is milvus, but the package {package} is not installed here: run "
        "'python -m pip install -c requirements.lock --group milvus', or set it to another kind"
    )


def _close(client: Any, database: Path | None) -> None:
    client.close()
    if database is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(database))
