"""A run whose catalog brings its own item vectors."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from config import with_overrides
from data.schema import Scores
from pipeline.answer import Wish, answer
from pipeline.build_index import build_index
from pipeline.change_index import add_items, update_items
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import base_text_vectors, train_retriever
from pipeline.workspace import open_workspace
from recommend.catalog import LiveCatalog
from recommend.item_writer import ItemChange, ItemWriter
from recommend.release import load_stages
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


def unread(texts: Sequence[str]) -> Scores:
    raise AssertionError(f"{len(texts)} texts were read")


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


def test_there_is_no_encoder_to_tune_or_to_read_histories(given):
    ws, _ = given
    tuned = replace(ws, config=with_overrides(ws.config, ["retriever.finetune.method=lora", "retriever.text.copies=1"]))
    with pytest.raises(BadInput, match=r"were given in the catalog .* 2 faults") as caught:
        train_retriever(tuned, log=quiet(ws))
    assert "retriever.finetune.method is lora: set it to frozen" in str(caught.value)
    assert "retriever.text.copies is 1: set it to 0" in str(caught.value)


def test_items_that_come_later_bring_theirs(given, tmp_path):
    ws, vectors = given
    train_retriever(ws, log=quiet(ws))
    build_index(ws, log=quiet(ws))
    run, header = ws.run, ["item_id", "title", "genres", "pixels"]
    twin = ["twin", *catalog_rows()[7][1:], "|".join(map(str, 3 * vectors[7]))]
    assert add_items(run, write_rows(tmp_path / "more.csv", header, [twin]), log=quiet(ws)) == (["twin"], [], 0)
    # The same words, other pixels: what is compared and what is searched is the picture.
    moved = [*twin[:3], "|".join(map(str, vectors[20]))]
    changed = update_items(run, write_rows(tmp_path / "other.csv", header, [moved]), log=quiet(ws))
    assert (changed.ids, changed.read) == (["twin"], 0)
    again = update_items(run, tmp_path / "other.csv", log=quiet(ws))
    assert (again.ids, again.unchanged) == ([], ["twin"])
    # A server is told of other columns alone: the picture stays.
    catalog = LiveCatalog(run, unread)
    writer = ItemWriter(run, lambda: catalog, lambda: None, alone=threading.RLock())
    assert writer.write(ItemChange("twin", {"genres": "genre9"})).state == "updated"
    assert writer.write(ItemChange("twin", {"genres": "genre9"})).state == "unchanged"
    genres = write_rows(tmp_path / "genres.csv", ["item_id", "genres"], [["twin", "genre9"]])
    assert update_items(run, genres, log=quiet(ws)).unchanged == ["twin"]  # and so does it for a file
    with pytest.raises(BadInput, match="pixels"):
        writer.write(ItemChange("other", {"title": "sol"}))
    stages = load_stages(run, run.release(), with_reranker=False)
    assert stages.dataset.catalog.items.row(-1, named=True)["genres"] == "genre9"
    text = stages.retriever.text
    assert text[-1] == pytest.approx(text[20], abs=1e-5)
    assert text[-1] != pytest.approx(text[7], abs=1e-2)
