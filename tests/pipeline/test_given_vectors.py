"""A run whose catalog brings its own item vectors."""

import numpy as np
import pytest

from config import with_overrides
from pipeline.answer import Wish, answer
from pipeline.build_index import build_index
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import base_text_vectors, train_retriever
from pipeline.workspace import open_workspace
from store.artifacts import Run
from store.errors import BadInput
from tests.pipeline.shop import ITEMS, Shop, catalog_rows, quiet, write_rows


@pytest.fixture
def given(shop: Shop, tmp_path):
    vectors = np.random.default_rng(5).standard_normal((ITEMS, 24))
    rows = [[*row, "|".join(map(str, vector))] for row, vector in zip(catalog_rows(), vectors, strict=True)]
    catalog = write_rows(tmp_path / "catalog.csv", ["item_id", "title", "genres", "pixels"], rows)
    settings = ["retriever.recency.epochs=1", "retriever.sequence.epochs=1", 'data.columns={vector="pixels"}']
    run = Run(tmp_path / "run")
    config = with_overrides(shop.config, settings)
    ws = prepare(run, shop.log, catalog, users=None, config=config, log=RunLog(run, "test", quiet=True))
    return ws, vectors


def test_they_stand_where_read_texts_would(given):
    ws, vectors = given
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert base_text_vectors(ws, log=quiet(ws)) == pytest.approx(expected, abs=1e-6)


def test_all_goes_on_but_wishes_in_words(given, capsys):
    ws, _ = given
    train_retriever(ws, log=quiet(ws))
    build_index(ws, log=quiet(ws))
    ws = open_workspace(ws.run.root)
    assert len(answer(ws, Wish(user="u010"), as_json=True).items) == 10
    with pytest.raises(BadInput, match="query needs item vectors made from texts"):
        answer(ws, Wish(query="red"), as_json=True)


def test_there_is_no_encoder_to_tune(given):
    ws, _ = given
    tuned = with_overrides(ws.config, ["retriever.finetune.method=lora"])
    with pytest.raises(BadInput, match=r"retriever.finetune.method is lora, but the item vectors were given"):
        train_retriever(type(ws)(**{**vars(ws), "config": tuned}), log=quiet(ws))
