"""Items that come, change and go while a run serves: recommended, explained, gone; nothing lost by what comes after."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from index.changes import Change, ChangeKind
from index.published import PublishedIndex
from pipeline.build_index import build_index
from pipeline.change_index import compact, ids_in
from pipeline.fit_final import fit_final
from pipeline.prepare import prepare
from pipeline.releases import go_back, listed, verify
from pipeline.run_log import RunLog
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, open_workspace
from recommend.catalog import Changed
from recommend.fresh import FreshRecommender
from store.artifacts import Run
from store.errors import BadInput, CorruptArtifact, UnknownId
from tests.pipeline.living import (
    HEADER,
    LATE,
    MOVED,
    TWENTY_FIVE,
    TWIN,
    add,
    ids,
    log,
    opened,
    recommended,
    remove,
    shown,
    update,
)
from tests.pipeline.shop import Shop, catalog_rows, item_id, log_rows, quiet, train, write_rows
from tests.rerank.tiny_bert import WORDS


def test_an_added_item_is_recommended_explained_and_found(root: Path):
    assert add(root, TWIN) == Changed(["twin"], [], 1)
    recommender = opened(root)
    found = {item.item_id: item for item in recommended(recommender, ["i28", "i29"], k=10)}
    assert {"twin", "i30"} <= set(found)
    assert found["twin"].title == TWIN[1]
    assert found["twin"].because[0] == "i29"
    assert sorted(ids(root, query=f"{TWIN[1]} | genre2", k=2)) == ["i30", "twin"]
    assert "i31" in ids(recommender, ["twin"], k=3)
    assert "twin" not in ids(recommender, ["i29", "twin"])
    assert any("twin" in ids(recommender, user=f"u{user:03d}") for user in range(10, 30))


def test_a_removed_item_is_shown_by_nothing_and_still_speaks(root: Path):
    popular = pl.DataFrame(log_rows(), schema=["user", "item", "time"], orient="row")["item"].value_counts(sort=True)
    gone = {popular["item"][0], "i30", "i31"}
    before = ids(root, ["i30"], k=40)
    assert set(remove(root, *sorted(gone)).ids) == gone
    recommender = opened(root)
    for history in (["i29"], ["i30"], []):
        assert not gone & set(ids(recommender, history, k=40)), history
    assert not gone & set(ids(recommender, user="u010", k=40))
    assert not gone & set(ids(root, query=f"{WORDS[30]} {WORDS[31]} | genre2", k=40))
    assert shown(root) == {item_id(row) for row in range(60)} - gone
    # The removed one still says what goes with it: what is left comes as before, but for what moved up.
    assert set(ids(recommender, ["i30"], k=20)) >= {one for one in before[:15] if one not in gone}
    with pytest.raises(BadInput, match="57 items"):
        recommender.checked_k(58, unless=10)


def test_removing_what_was_added_gives_every_answer_back(root: Path):
    asked = [["i05"], ["i29", "i30"], []]
    before = [ids(root, one) for one in asked]
    add(root, TWIN, ["other", f"{WORDS[5]} {WORDS[9]}", "genre1"])
    assert [ids(root, one) for one in asked] != before
    remove(root, "twin", "other")
    assert [ids(root, one) for one in asked] == before


def test_an_id_comes_back_to_its_row_and_is_not_read_again(root: Path):
    add(root, TWIN)
    remove(root, "twin")
    assert add(root, TWIN) == Changed(["twin"], [], 0)
    index = PublishedIndex(Run(root)).index
    assert (len(index), index.live_rows.tolist()) == (61, list(range(61)))
    assert "twin" in ids(root, ["i29"], k=10)


def test_the_same_again_changes_nothing(root: Path):
    add(root, TWIN)
    assert add(root, TWIN) == Changed([], ["twin"], 0)
    assert update(root, TWIN) == Changed([], ["twin"], 0)
    assert remove(root, "twin") == Changed(["twin"], [], 0)
    assert remove(root, "twin") == Changed([], ["twin"], 0)
    assert len(PublishedIndex(Run(root)).changes) == 2


def test_an_update_reads_only_texts_that_differ(root: Path):
    add(root, TWIN)
    assert update(root, ["i04", catalog_rows()[4][1], "genre0"], TWIN) == Changed([], ["i04", "twin"], 0)
    assert update(root, MOVED, TWIN) == Changed(["i40"], ["twin"], 1)
    assert sorted(ids(root, query=f"{MOVED[1]} | genre2", k=2)) == ["i10", "i40"]


def test_a_column_outside_of_the_text_is_noted_without_reading(shop: Shop, tmp_path: Path):
    rows = [[*row, str(10 + place)] for place, row in enumerate(catalog_rows())]
    header = [*HEADER, "price"]
    priced = Shop(tmp_path, shop.log, write_rows(tmp_path / "p.csv", header, rows), shop.model, tmp_path / "run")
    root = train(priced.run, priced.log, priced).run.root
    assert update(root, [*rows[3][:3], "99"], header=header) == Changed(["i03"], [], 0)
    assert [change.kind for change in PublishedIndex(Run(root)).changes] == [ChangeKind.NOTE]
    # A column that the file lacks stays as it is, and is null in an item that is new.
    assert update(root, ["i03", f"{WORDS[3]} {WORDS[9]}", "genre3"]) == Changed(["i03"], [], 1)
    add(root, TWIN)
    compact(Run(root), log=log(root))
    update(root, [*rows[5][:3], "98"], header=header)
    catalog = opened(root).catalog
    assert [catalog.items["price"][row] for row in (3, 5, 7)] == ["99", "98", "17"]
    assert catalog.titles[3] == f"{WORDS[3]} {WORDS[9]}"
    new = {"item_id": "twin", "title": TWIN[1], "text": f"{TWIN[1]} | genre2", "genres": "genre2", "price": None}
    assert catalog.items.row(60, named=True) == new


def test_compaction_changes_no_answer_and_going_back_gives_what_was(root: Path):
    add(root, TWIN)
    update(root, MOVED)
    remove(root, "i31", "i32")
    asked = [["i05"], ["i30", "twin"], []]
    before = [ids(root, one) for one in asked]
    old = Run(root).release()
    assert compact(Run(root), log=log(root)).index != old.index
    assert [ids(root, one) for one in asked] == before
    assert "59 items, rows and vectors as catalog and towers have them" in verify(Run(root), log=log(root))[-1]
    assert compact(Run(root), log=log(root)) == Run(root).release()  # nothing to fold
    add(root, LATE)
    assert "late" in shown(root)
    go_back(Run(root), None, log=log(root))
    assert [ids(root, one) for one in asked] == before
    lines = listed(Run(root))
    assert [(line.items, line.changes) for line in lines[-4:]] == [(59, 3), (59, 0), (60, 1), (59, 3)]
    assert [line.current for line in lines] == [False] * (len(lines) - 1) + [True]
    go_back(Run(root), lines[-2].number, log=log(root))
    assert "late" in shown(root)


def test_a_rebuild_and_a_final_fit_keep_every_change(root: Path, monkeypatch: pytest.MonkeyPatch):
    add(root, TWIN)
    remove(root, "i31")
    compact(Run(root), log=log(root))
    add(root, LATE)
    before, answer = shown(root), ids(root, ["i29"])

    def unread(*_: object) -> None:
        raise AssertionError("a text was read again, though the encoder is the same")

    monkeypatch.setattr("pipeline.change_index.encoder_of", unread)
    ws = open_workspace(root)
    # The second time it is the final fit's index that is built, which is in service by then.
    for make in (build_index, fit_final, build_index, partial(build_index, fit=FitKind.EVALUATION)):
        make(ws, log=quiet(ws))
        assert shown(root) == before, make
        assert "twin" in ids(root, ["i29"], k=10), make
    assert ids(root, ["i29"]) == answer
    assert "61 items" in verify(Run(root), log=log(root))[-1]


def test_a_new_catalog_tells_itself_what_it_has_and_the_rest_stays(
    root: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
):
    add(root, TWIN, LATE)
    remove(root, "i31", "i32")
    known = [*[row for row in catalog_rows() if row[0] != "i32"], TWIN]
    catalog = write_rows(root.parent / "new.csv", HEADER, known)
    kept = [row for row in log_rows() if row[1] != "i32"]
    interactions = write_rows(root.parent / "log.csv", ["user_id", "item_id", "timestamp"], kept)
    ws = prepare(Run(root), interactions, catalog, users=None, config=shop.config, log=log(root))
    assert "late" in shown(root)  # what is served has not changed yet
    train_retriever(ws, log=quiet(ws))
    capsys.readouterr()
    build_index(ws, log=RunLog(ws.run, "test"))
    told = capsys.readouterr().err
    assert "1 items changed live are told by the new catalog: twin" in told
    assert "1 items removed live are in the new catalog and shown again: i31" in told
    assert shown(root) == {row[0] for row in known} | {"late"}
    assert "late" in ids(root, ["i00"], k=10)


def test_a_recommender_keeps_up_and_what_was_given_out_stays(root: Path):
    fresh = FreshRecommender(Run(root), TWENTY_FIVE)
    first = fresh.current()
    assert fresh.current() is first
    answer = ids(first, ["i29"])
    add(root, TWIN)
    second = fresh.current()
    assert ("twin" in ids(second, ["i29"], k=10), ids(first, ["i29"])) == (True, answer)
    remove(root, "twin")
    third = fresh.current()
    assert third.second.reranker is second.second.reranker  # changes load no model
    assert (ids(third, ["i29"]), "twin" in ids(second, ["i29"], k=10)) == (answer, True)
    add(root, TWIN)
    compact(Run(root), log=log(root))
    assert "twin" in ids(fresh.current(), ["i29"], k=10)


# --- bad input


@pytest.mark.parametrize(
    ("change", "rows", "error", "told"),
    [
        (
            add,
            [["i03", "other", "genre1"], TWIN],
            BadInput,
            r"1 of 2 .*'i03'\) is in the catalog already.*index update",
        ),
        (add, [TWIN, TWIN], BadInput, r"repeats an earlier id in row \d \(such as 'twin'\)"),
        (add, [TWIN, ["", "words", "genre1"]], BadInput, r"null or empty in row \d"),
        (add, [["new", "", ""]], BadInput, "no text comes out of the template"),
        (update, [TWIN, catalog_rows()[2]], UnknownId, r"1 of 2 items \('twin'\) is not in the catalog.*index add"),
    ],
)
def test_items_that_cannot_be_taken_in(root: Path, change, rows, error, told):
    before = Run(root).release()
    with pytest.raises(error, match=told):
        change(root, *rows)
    assert Run(root).release() == before


def test_ids_that_cannot_be_removed(root: Path):
    with pytest.raises(UnknownId, match=r"1 of 2 items \('nobody'\) is not in the catalog"):
        remove(root, "i01", "nobody")
    with pytest.raises(BadInput, match="name the items"):
        remove(root)
    with pytest.raises(BadInput, match="at least one"):
        remove(root, *[item_id(row) for row in range(60)])
    assert Run(root).release().live is None


def test_ids_come_from_a_file(tmp_path: Path):
    path = tmp_path / "ids.txt"
    with pytest.raises(BadInput, match=r"ids\.txt cannot be read"):
        ids_in(path)
    path.write_text("i01\n\n i02 \n")
    assert ids_in(path) == ["i01", "i02"]
    assert ids_in(write_rows(tmp_path / "items.csv", HEADER, [["i03", "-", "-"]])) == ["i03"]
    with pytest.raises(BadInput, match="item_id"):
        ids_in(write_rows(tmp_path / "items.csv", ["brand"], [["x"]]))


def test_a_file_without_the_columns_of_the_text_is_refused(root: Path):
    with pytest.raises(BadInput, match="genres"):
        add(root, ["twin", "x"], header=["item_id", "title"])


def test_a_journal_that_carries_no_items_is_refused(root: Path):
    PublishedIndex(Run(root)).change(Change(ChangeKind.NOTE, np.array([0])))
    with pytest.raises(CorruptArtifact, match="says nothing of the items"):
        opened(root)


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_journal_is_named_and_an_earlier_release_serves(root: Path, harm: str):
    add(root, TWIN)
    compact(Run(root), log=log(root))
    remove(root, "i05")
    (path,) = [one for one in (root / "live").iterdir() if one.stem == Run(root).release().live]
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content[:-1] if harm == "truncate" else content)
    with pytest.raises(CorruptArtifact, match=r"journal.*damaged.*index rollback"):
        opened(root)
    with pytest.raises(CorruptArtifact, match=f"2 faults(.|\n)*{path.name}"):
        verify(Run(root), log=log(root))
    assert "damaged" in listed(Run(root))[-1].told()
    go_back(Run(root), None, log=log(root))
    assert {"i05", "twin"} <= shown(root)
