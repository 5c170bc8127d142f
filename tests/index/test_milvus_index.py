"""Milvus beyond the contract: bounds of what a server returns, a server at an address, and what can go wrong."""

import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from data.schema import NO_ITEM
from index import milvus_index
from index.build import IndexConfig, plan_index, told
from index.faiss_index import FlatIndex, load_index
from index.milvus_collection import MilvusCollection, MilvusConfig, MilvusLayout
from index.milvus_index import MilvusIndex
from store.errors import CorruptArtifact, Mismatch, MissingPackage, MissingStep, Unreachable
from tests.pipeline.commands import Faults, refused, run
from tests.pipeline.shop import Shop

services = [
    pytest.mark.services,
    pytest.mark.skipif(
        not all(map(find_spec, ("pymilvus", "milvus_lite"))),
        reason="needs pymilvus and milvus-lite: python -m pip install -c requirements.lock --group milvus",
    ),
]


def needs_milvus(test):
    for mark in services:
        test = mark(test)
    return test


@pytest.fixture
def server(tmp_path):
    """The address of a Milvus that other processes reach as they would reach a cluster."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    serving, database, port = start_server_in_thread(str(tmp_path / "server.db"))
    yield f"http://127.0.0.1:{port}"
    serving.stop(grace=0)
    database.close()


def drawn(items: int = 120, dimension: int = 4) -> np.ndarray:
    return np.random.default_rng(7).integers(-2, 3, (items, dimension)).astype(np.float32)


@needs_milvus
@pytest.mark.parametrize("layout", MilvusLayout)
def test_exactly_k_whatever_is_asked_beyond_what_a_server_lists_and_returns(monkeypatch, layout):
    monkeypatch.setattr(milvus_index, "LISTED", 10)
    monkeypatch.setattr(milvus_index, "FETCH_MOST", 40)
    vectors, rng = drawn(), np.random.default_rng(8)
    index, flat = MilvusIndex(vectors, MilvusConfig(layout=layout)), FlatIndex(vectors)
    asked = rng.integers(-2, 3, (4, 4)).astype(np.float32)
    exclude = [rng.choice(120, size, replace=False) for size in (0, 3, 30, 110)]
    for k in (1, 15, 50):
        for share in (None, 0.05, 0.3, 0.95):
            allowed = None if share is None else rng.random(120) < share
            scores, rows = index.search(asked, k, exclude=exclude, allowed=allowed)
            expected_scores, expected_rows = flat.search(asked, k, exclude=exclude, allowed=allowed)
            np.testing.assert_array_equal((rows != NO_ITEM).sum(1), (expected_rows != NO_ITEM).sum(1))
            # The lower of equal rows is promised as far as the server returns all that are tied.
            if layout is MilvusLayout.FLAT:
                np.testing.assert_array_equal(scores, expected_scores)


@needs_milvus
def test_a_collection_at_an_address_is_named_by_its_vectors_and_shared(server, tmp_path, monkeypatch):
    config = MilvusConfig(uri=server)
    vectors = drawn()
    MilvusIndex(vectors, config).save(tmp_path, retriever="r", catalog="c")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "server.db") == ["index.json", "milvus.json"]
    monkeypatch.setattr(MilvusCollection, "fill", lambda *_: pytest.fail("it is there already"))
    again, loaded = MilvusIndex(vectors, config), load_index(tmp_path, retriever="r", catalog="c")
    for index in (again, loaded):
        found = index.search(vectors[:3], 5)
        np.testing.assert_array_equal(found[1], FlatIndex(vectors).search(vectors[:3], 5)[1])


@needs_milvus
@pytest.mark.parametrize("killed_in", ["flush", "create_index", "load_collection"])
def test_a_build_that_was_killed_is_gone_on_with(server, monkeypatch, killed_in):
    from pymilvus import MilvusClient

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    config, vectors = MilvusConfig(uri=server), drawn()
    name = milvus_index._name_of(vectors, config)
    with monkeypatch.context() as patch:
        patch.setattr(MilvusClient, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            MilvusCollection(name, config, None).fill(vectors[:50])
    index = MilvusIndex(vectors, config)
    np.testing.assert_array_equal(index.vectors(np.arange(120)), vectors)
    assert MilvusCollection(name, config, None).count() == 120


@needs_milvus
def test_a_collection_that_is_gone_or_has_lost_rows_is_told(server, tmp_path):
    from pymilvus import MilvusClient

    config, vectors = MilvusConfig(uri=server), drawn()
    MilvusIndex(vectors, config).save(tmp_path, retriever="r", catalog="c")
    name, client = milvus_index._name_of(vectors, config), MilvusClient(server)
    client.delete(name, ids=[3])
    with pytest.raises(CorruptArtifact, match=r"holds 119 vectors, the manifest says 120.*build-index"):
        load_index(tmp_path)
    client.drop_collection(name)
    with pytest.raises(MissingStep, match=rf"{server} has no collection {name}.*build-index"):
        load_index(tmp_path)
    client.close()


@needs_milvus
def test_a_folder_is_opened_by_many_and_never_changed(tmp_path):
    vectors = drawn()
    MilvusIndex(vectors).save(tmp_path, retriever="r", catalog="c")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    one, other = load_index(tmp_path), load_index(tmp_path)
    np.testing.assert_array_equal(one.search(vectors, 3)[1], other.search(vectors, 3)[1])
    del one, other
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@needs_milvus
def test_its_trial_is_told_as_those_of_other_kinds_are():
    said = []
    planned = plan_index(drawn(), drawn(10), IndexConfig(kind="milvus", recall_at=5), say=said.append)
    assert said == [told(planned.report[0])]
    assert said[0].startswith("milvus ")


@needs_milvus
def test_scores_that_are_no_inner_products_are_found_out():
    vectors = drawn()
    with pytest.raises(Mismatch, match="no inner products"):
        MilvusIndex(vectors)._check_scores(2 * vectors)


@needs_milvus
def test_every_call_has_its_limit(monkeypatch, tmp_path):
    from pymilvus import MilvusClient

    limits, listed = [], MilvusClient.list_indexes

    def told(self, *asked, **how):
        limits.append(how.get("timeout"))
        return listed(self, *asked, **how)

    monkeypatch.setattr(MilvusClient, "list_indexes", told)
    MilvusIndex(drawn(), MilvusConfig(timeout_s=7, build_minutes=1)).save(tmp_path, retriever="r", catalog="c")
    assert len(load_index(tmp_path)) == 120
    # Once when it is filled, and twice when it is opened and counted.
    assert limits == [60, 7, 7]


@needs_milvus
def test_threads_that_ask_at_once_open_it_once(monkeypatch):
    import pymilvus

    index, opened, threads = MilvusIndex(drawn()), [], 6
    index._collection.close()
    connect, at_once = pymilvus.MilvusClient, threading.Barrier(threads)

    def slowly(*asked, **how):
        opened.append(asked)
        time.sleep(0.3)
        return connect(*asked, **how)

    def ask(number):
        at_once.wait()
        return index.search(drawn()[number : number + 1], 3)[1].tolist()

    monkeypatch.setattr(pymilvus, "MilvusClient", slowly)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(ask, range(threads)))
    assert found == [FlatIndex(drawn()).search(drawn()[n : n + 1], 3)[1].tolist() for n in range(threads)]
    assert len(opened) == 1


@needs_milvus
@pytest.mark.parametrize("listening", [True, False])
def test_an_address_that_does_not_answer_is_told_in_time(listening):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not listening:
            silent.close()
        started = time.monotonic()
        with pytest.raises(Unreachable, match=rf"Milvus at http://127.0.0.1:{port}.*index\.milvus\.uri") as told:
            MilvusIndex(drawn(), MilvusConfig(uri=f"http://127.0.0.1:{port}", timeout_s=1.5))
        assert time.monotonic() - started < 10
    assert told.value.exit_code == 14


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://root:secret@host:19530", "set MILVUS_TOKEN"),
        ("runs/shop/milvus.db", "write http://host:19530"),
        ("host:19530", "write http://host:19530"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(uri, message):
    with pytest.raises(ValidationError, match=message):
        MilvusConfig(uri=uri)


def test_a_missing_package_is_named_with_the_command_that_installs_it(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    for missing in ("pymilvus", "milvus_lite"):
        done = run("build-index", "--run", root, "--kind", "milvus", cwd=tmp_path, faults=Faults(missing=(missing,)))
        refused(done, MissingPackage, rf"{missing}.*pip install -c requirements\.lock --group milvus")


@needs_milvus
def test_a_run_is_served_from_milvus_as_from_the_flat_index(shop: Shop, tmp_path):
    import polars as pl

    root, found = shop.copy(tmp_path), []
    for kind in ("flat", "milvus"):
        built = run("build-index", "--run", root, "--kind", kind, cwd=tmp_path)
        assert built.code == 0, built.err
        path = Path(tmp_path / f"{kind}.parquet")
        done = run("recommend", "--run", root, "--all", "--towers-only", "-k", 20, "-o", path, cwd=tmp_path)
        assert done.code == 0, done.err
        found.append(pl.read_parquet(path))
    assert found[0].drop("score").equals(found[1].drop("score"))
    np.testing.assert_allclose(found[0]["score"], found[1]["score"], rtol=1e-5, atol=1e-6)
    shutil.rmtree(root)
