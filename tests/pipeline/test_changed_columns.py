"""Some columns of an item are changed, and the others, its title and its text are what follows from that."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from config import with_overrides
from data.schema import Scores
from pipeline.build_index import build_index
from pipeline.change_index import update_items
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import train_retriever
from recommend.catalog import Changed, LiveCatalog
from recommend.item_writer import ItemChange, ItemWriter
from recommend.release import encoder_of
from retrieval.encode import encode_texts
from store.artifacts import Run
from store.errors import BadInput, UnknownId
from tests.pipeline.shop import Shop, catalog_rows, quiet, write_rows

Make = Callable[..., Path]


@pytest.fixture
def made(shop: Shop, tmp_path: Path) -> Make:
    """Trains a run, hardly, on a catalog with these columns: the id, two words, a genre and the number of the row."""

    def make(header: Sequence[str], *settings: str) -> Path:
        rows = [[*row, str(place)][: len(header)] for place, row in enumerate(catalog_rows())]
        catalog = write_rows(tmp_path / "catalog.csv", list(header), rows)
        run = Run(tmp_path / "run")
        hardly = ("retriever.recency.epochs=1", "retriever.sequence.epochs=1")
        config = with_overrides(shop.config, [*hardly, *settings])
        ws = prepare(run, shop.log, catalog, users=None, config=config, log=RunLog(run, "test", quiet=True))
        train_retriever(ws, log=quiet(ws))
        build_index(ws, log=quiet(ws))
        return run.root

    return make


def put(root: Path, item_id: str, **values: Any) -> dict[str, Any]:
    """What the catalog has of an item, but for its id, after it was put."""
    run = Run(root)
    model, settings = encoder_of(run, run.release())
    catalog = LiveCatalog(run, lambda texts: encode_texts(model, texts, settings))
    ItemWriter(run, lambda: catalog, lambda: None, alone=threading.RLock()).write(ItemChange(item_id, values))
    return now(catalog, item_id)


def now(catalog: LiveCatalog, item_id: str) -> dict[str, Any]:
    found = catalog.catalog.items.row(catalog.catalog.vocabulary.row(item_id), named=True)
    return {name: value for name, value in found.items() if name != "item_id"}


WORDS = catalog_rows()[3][1]


def test_a_title_that_a_name_makes_goes_with_it(made: Make):
    root = made(["item_id", "name", "genre", "price"])
    expected = {"title": "sol mar", "text": "sol mar", "name": "sol mar", "genre": "genre3", "price": "3"}
    assert put(root, "i03", name="sol mar") == expected
    assert put(root, "i03", price="9") == {**expected, "price": "9"}
    assert put(root, "new", name="mar") == {"title": "mar", "text": "mar", "name": "mar", "genre": None, "price": None}


def test_a_title_that_a_template_makes_goes_with_the_text(made: Make):
    root = made(["item_id", "brand", "colour"], 'data.template="{brand} in {colour}"')
    text = "sol in genre3"
    assert put(root, "i03", brand="sol") == {"title": text, "text": text, "brand": "sol", "colour": "genre3"}


@pytest.mark.parametrize("settings", [(), ('data.template="{name}"',)])
def test_a_title_of_its_own_stays_beside_another_name(made: Make, settings: tuple[str, ...]):
    root = made(["item_id", "title", "name"], *settings)
    found = put(root, "i03", name="sol")
    assert (found["title"], found["name"]) == (WORDS, "sol")
    assert put(root, "i03", title="mar")["title"] == "mar"


def test_a_title_by_another_name_stays(made: Make):
    root = made(["item_id", "label", "genres", "price"], 'data.columns={title="label"}')
    expected = {"title": WORDS, "text": f"{WORDS} | genre3", "genres": "genre3", "price": "9"}
    assert put(root, "i03", price="9") == expected
    assert put(root, "i03", label="sol") == {**expected, "title": "sol", "text": "sol | genre3"}


def updated(root: Path, header: Sequence[str], row: Sequence[str]) -> tuple[Changed, dict[str, Any]]:
    """What an update by a file of one item did, and what the catalog has of the item then."""
    file = write_rows(root.parent / "changes.csv", list(header), [list(row)])
    done = update_items(Run(root), file, log=RunLog(Run(root), "test"))
    return done, now(LiveCatalog(Run(root), unread), row[0])


def unread(texts: Sequence[str]) -> Scores:
    raise AssertionError(f"{len(texts)} texts were read")


def test_a_file_of_some_columns_leaves_the_others(made: Make, capsys: pytest.CaptureFixture[str]):
    root = made(["item_id", "title", "genres", "price"], 'data.template="{title} | {genres}"')
    expected = {"title": WORDS, "text": f"{WORDS} | genre3", "genres": "genre3", "price": "9"}
    assert updated(root, ["item_id", "price"], ["i03", "9"]) == (Changed(["i03"], [], 0), expected)
    assert "changes.csv lacks, left as they are: title, text, genres" in capsys.readouterr().err
    expected |= {"title": "sol", "text": "sol | genre3"}
    assert updated(root, ["item_id", "title"], ["i03", "sol"]) == (Changed(["i03"], [], 1), expected)
    assert updated(root, ["item_id", "title"], ["i03", "sol"]) == (Changed([], ["i03"], 0), expected)
    with pytest.raises(UnknownId, match=r"'nobody'\) is not in the catalog: add them"):
        updated(root, ["item_id", "price"], ["nobody", "9"])


def test_a_text_of_its_own_that_is_not_kept_has_to_be_given(made: Make):
    root = made(["item_id", "title", "text", "price"])
    expected = {"title": WORDS, "text": f"{WORDS} | genre3", "price": "9"}
    assert put(root, "i03", price="9") == expected
    for change in (
        lambda: put(root, "i03", title="sol"),
        lambda: updated(root, ["item_id", "title"], ["i03", "sol"]),
    ):
        with pytest.raises(
            BadInput, match="catalog keeps only what was made of its column 'text': give 'text', too"
        ) as told:
            change()
        assert "item.jsonl" not in str(told.value)
    assert put(root, "i03", text="mar")["text"] == f"{WORDS} | mar"
    assert put(root, "i03", title="sol", text="mar") == {"title": "sol", "text": "sol | mar", "price": "9"}
    assert put(root, "new", title="sol") == {"title": "sol", "text": "sol", "price": None}
    with pytest.raises(BadInput, match=r"^the item: row 1: no text comes out"):
        put(root, "other", price="9")


def test_a_title_that_was_put_where_others_have_a_name_stays(made: Make):
    root = made(["item_id", "name", "price"])
    put(root, "i03", title="sol")
    assert put(root, "i03", price="7") == {"title": "sol", "text": WORDS, "name": WORDS, "price": "7"}
