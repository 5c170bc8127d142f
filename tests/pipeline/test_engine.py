"""Work in parts, by this process and by Ray: the same results."""

import importlib.util
import shutil
import socket
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest

from pipeline import export, ray_workers
from pipeline.engine import HERE, Engine, EngineKind
from pipeline.export import Asked
from pipeline.train_retriever import base_text_vectors
from pipeline.workspace import open_workspace
from recommend.recommender import Rerank
from retrieval import encode
from store.errors import BadInput, MissingPackage, Unreachable
from tests.pipeline.commands import Faults, refused, run
from tests.pipeline.shop import Shop, quiet, weigh_reranker

RAY = Engine(EngineKind.RAY, workers=2)
services = pytest.mark.services
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


@services
@needs_ray
@pytest.mark.parametrize("rerank", [Rerank.AUTO, Rerank.NEVER])
def test_two_workers_recommend_what_one_process_does(shop: Shop, tmp_path, monkeypatch, rerank):
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    ws = open_workspace(root)
    monkeypatch.setattr(export, "USERS_AT_ONCE", 25)  # 120 users: five parts
    frames = []
    for engine in (HERE, RAY):
        path = tmp_path / f"{engine.kind}.parquet"
        rows = export.export(
            ws, Asked.TEST, path, k=12, depth=8, users=0, rerank=rerank, towers_only=False, log=quiet(ws), engine=engine
        )
        frames.append(pl.read_parquet(path))
        assert rows == len(frames[-1]) == 120 * 12
    assert frames[0].equals(frames[1])
