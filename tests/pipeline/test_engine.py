"""Work in parts, by this process and by Ray: the same results."""

import importlib.util
import pickle
import shutil
import socket
import time
from functools import partial

import numpy as np
import polars as pl
import pytest

from pipeline import export, ray_workers
from pipeline.engine import HERE, Engine, EngineKind
from pipeline.export import Asked
from pipeline.train_retriever import base_text_vectors
from pipeline.workspace import open_workspace
from recommend.item_filter import ItemFilter
from recommend.recommender import Rerank
from retrieval import encode
from store.errors import BadInput, MissingPackage, UnknownId, Unreachable
from tests.pipeline.commands import Faults, refused, run
from tests.pipeline.shop import Shop, quiet, weigh_reranker

RAY = Engine(EngineKind.RAY, workers=2)
# A start of Ray that a busy machine cut short leaves its processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray: python -m pip install -c requirements.lock --group ray"
)


def test_one_process_makes_the_parts_in_order_and_prepares_once():
    prepared = []

    def prepare():
        prepared.append(True)
        return partial(divmod, 100)

    assert list(HERE.made(prepare, [7, 9, 11])) == [(14, 2), (11, 1), (9, 1)]
    assert prepared == [True]


class Pickled(Engine):
    """Two workers that know nothing but what is pickled for them; what Ray does, in one process."""

    def made(self, prepare, parts):
        workers = [pickle.loads(pickle.dumps(prepare))() for _ in range(2)]
        for place, part in enumerate(parts):
            yield workers[place % 2](pickle.loads(pickle.dumps(part)))


@pytest.mark.parametrize(
    "engine",
    [
        Pickled(EngineKind.RAY),
        pytest.param(RAY, marks=[pytest.mark.services, needs_ray]),
    ],
    ids=["pickled", "ray"],
)
def test_two_workers_recommend_what_one_process_does(shop: Shop, tmp_path, monkeypatch, engine):
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    ws = open_workspace(root)
    monkeypatch.setattr(export, "USERS_AT_ONCE", 25)  # 120 users: five parts
    asked = {"k": 12, "depth": 8, "users": 0, "rerank": Rerank.AUTO, "towers_only": False}
    asked["items"] = ItemFilter(exclude="i05,i09")
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    assert export.export(ws, Asked.TEST, one, **asked, log=quiet(ws)).rows == 120 * 12
    assert export.export(ws, Asked.TEST, two, **asked, log=quiet(ws), engine=engine).rows == 120 * 12
    assert pl.read_parquet(one).equals(pl.read_parquet(two))
    assert not {"i05", "i09"} & set(pl.read_parquet(two)["item_id"])


@pytest.mark.services
@needs_ray
def test_two_workers_read_a_catalog_as_one_process_does(shop: Shop, tmp_path, monkeypatch):
    ws = open_workspace(shop.copy(tmp_path))
    monkeypatch.setattr(encode, "ENCODE_CHUNK", 8)  # 60 texts: eight chunks
    made = {}
    for engine in (HERE, RAY):
        shutil.rmtree(ws.run.root / "artifacts" / "text_vectors")
        made[engine.kind] = np.array(base_text_vectors(ws, log=quiet(ws), engine=engine))
    np.testing.assert_array_equal(made["process"], made["ray"])
    assert made["ray"].shape[0] == 60


def refusing():
    """A module's function, so that workers find it by name."""
    raise UnknownId("nobody has seen 'x'")


@pytest.mark.services
@needs_ray
def test_what_a_worker_refuses_is_told_as_it_was():
    with pytest.raises(UnknownId, match="nobody has seen 'x'"):
        list(RAY.made(refusing, [1, 2, 3]))


@needs_ray
@pytest.mark.parametrize("address", ["auto", "here:port", "ray://10.0.0.1:10001", "6379"])
def test_an_address_that_is_none(address):
    with pytest.raises(BadInput, match=r"--ray-address.*write host:port"):
        next(Engine(EngineKind.RAY, address).made(refusing, [1]))


@needs_ray
def test_an_address_where_nobody_listens_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable, match=rf"no Ray answers at {address} \(Connection refused\)") as told:
        next(Engine(EngineKind.RAY, address).made(refusing, [1]))
    assert told.value.exit_code == 14


@needs_ray
def test_an_address_that_is_silent_is_told_in_time(monkeypatch):
    monkeypatch.setattr(ray_workers, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="it is silent for 2 s"):
            next(Engine(EngineKind.RAY, f"127.0.0.1:{silent.getsockname()[1]}").made(refusing, [1]))
        assert time.monotonic() - started < 10


def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it(shop: Shop, tmp_path):
    asked = ["recommend", "--run", shop.run, "--all", "-k", 10, "-o", tmp_path / "r.parquet", "--engine", "ray"]
    done = run(*asked, cwd=tmp_path, faults=Faults(missing=("ray",)))
    refused(done, MissingPackage, r"pip install -c requirements\.lock --group ray")
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--all", "-o", "r.parquet", "--engine", "spark"], "--engine is 'spark'; it may be process, ray"),
        (["--all", "-o", "r.parquet", "--workers", "2"], "--ray-address and --workers go with --engine ray"),
        (["--user", "u010", "--engine", "ray"], "--engine go with --all"),
    ],
)
def test_options_that_do_not_go_together(shop: Shop, tmp_path, options, pattern):
    refused(run("recommend", "--run", shop.run, *options, cwd=tmp_path), BadInput, pattern)
