"""Items that come, change and go while a run serves: recommended, explained, gone; nothing lost by what comes after."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from index.changes import Change, ChangeKind
from index.published import PublishedIndex
from pipeline.workspace import Workspace
from store.artifacts import Run
from store.errors import BadInput, CorruptArtifact, MissingStep, NoSpace, RunBusy, UnknownId
from tests.pipeline.commands import Done, Faults, refused, run, start
from tests.pipeline.shop import Shop, catalog_rows, item_id, log_rows, write_rows
from tests.rerank.tiny_bert import WORDS

HEADER = ["item_id", "title", "genres"]
TWIN = ["twin", f"{WORDS[30]} {WORDS[31]}", "genre2"]
"""Reads as item 30 does: it follows 29 and is followed by 31, as far as words tell."""


@pytest.fixture
def root(weighed: Workspace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(weighed.run.root, tmp_path / "run"))


def tandem(command: str, root: Path, *more: object, faults: Faults | None = None) -> Done:
    return run(*command.split(), *more, "--run", root, cwd=root.parent, faults=faults)


def done(command: str, root: Path, *more: object) -> str:
    found = tandem(command, root, *more)
    assert found.code == 0, found.err
    return found.out


def items(root: Path, *rows: list[str], name: str = "items.csv", header: list[str] | None = None) -> Path:
    return write_rows(root.parent / name, header or HEADER, list(rows))


def recommended(root: Path, *asked: object, k: int = 25) -> list[dict]:
    return json.loads(done("recommend", root, *asked, "--json", "-k", k))["items"]


def ids(root: Path, *asked: object, k: int = 25) -> list[str]:
    return [item["item_id"] for item in recommended(root, *asked, k=k)]


def shown(root: Path) -> set[str]:
    """Every item that a wish can bring."""
    n_items = json.loads(done("index list", root, "--json"))[-1]["items"]
    return set(ids(root, "--query", WORDS[0], k=n_items))


def test_an_added_item_is_recommended_explained_and_found(root: Path):
    assert done("index add", root, items(root, TWIN)) == "1 items added\n"
    after_29 = recommended(root, "--history", "i28,i29", k=10)
    found = {item["item_id"]: item for item in after_29}
    assert {"twin", "i30"} <= set(found)
    assert found["twin"]["title"] == TWIN[1]
    assert found["twin"]["because"][0] == "i29"
    assert ids(root, "--query", f"{TWIN[1]} | genre2", k=2) in (["i30", "twin"], ["twin", "i30"])
    assert "i31" in ids(root, "--history", "twin", k=3)
    assert "twin" not in ids(root, "--history", "i29,twin")
    assert any("twin" in ids(root, "--user", user) for user in ("u010", "u011", "u012", "u013", "u014", "u015"))


def test_a_removed_item_is_shown_by_nothing_and_still_speaks(root: Path):
    popular = pl.DataFrame(log_rows(), schema=["user", "item", "time"], orient="row")["item"].value_counts(sort=True)
    gone = [popular["item"][0], "i30", "i31"]
    before = ids(root, "--history", "i30", k=40)
    assert done("index remove", root, *gone) == "3 items removed\n"
    for asked in (
        ["--history", "i29"],
        ["--history", "i30"],
        ["--history", ""],
        ["--query", f"{WORDS[30]} {WORDS[31]} | genre2"],
        ["--user", "u010", "--rerank", "always"],
    ):
        assert not set(gone) & set(ids(root, *asked, k=40)), asked
    assert shown(root) == {item_id(row) for row in range(60)} - set(gone)
    # What is left comes in its order: the removed one still says what follows it.
    assert ids(root, "--history", "i30", k=30)[:10] == [one for one in before if one not in gone][:10]
    refused(tandem("recommend", root, "--user", "u010", "-k", 58), BadInput, "57 items")


def test_removing_what_was_added_gives_every_answer_back(root: Path):
    asked = [["--user", "u010"], ["--history", "i05"], ["--query", WORDS[7]]]
    before = [recommended(root, *one) for one in asked]
    done("index add", root, items(root, TWIN, ["other", f"{WORDS[5]} {WORDS[9]}", "genre1"]))
    assert [recommended(root, *one) for one in asked] != before
    done("index remove", root, "twin", "other")
    assert [ids(root, *one) for one in asked] == [[item["item_id"] for item in one] for one in before]


def test_an_id_comes_back_to_its_row(root: Path):
    done("index add", root, items(root, TWIN))
    done("index remove", root, "twin")
    out = tandem("index add", root, items(root, TWIN))
    assert (out.code, "texts read" in out.err) == (0, False)  # it was read before
    opened = PublishedIndex(Run(root))
    assert (len(opened.index), opened.index.live_rows.tolist()) == (61, list(range(61)))
    assert "twin" in ids(root, "--history", "i29", k=10)


def test_the_same_command_again_changes_nothing(root: Path):
    path = items(root, TWIN)
    done("index add", root, path)
    changes = len(PublishedIndex(Run(root)).changes)
    assert done("index add", root, path) == "0 items added, 1 as they were\n"
    assert done("index update", root, path) == "0 items updated, 1 as they were\n"
    done("index remove", root, "twin")
    assert done("index remove", root, "twin") == "0 items removed, 1 as they were\n"
    assert len(PublishedIndex(Run(root)).changes) == changes + 1


def test_an_update_reads_only_texts_that_differ(root: Path):
    done("index add", root, items(root, TWIN))
    same_text = tandem("index update", root, items(root, ["i04", catalog_rows()[4][1], "genre0"], TWIN))
    assert (same_text.out, "texts read" in same_text.err) == ("0 items updated, 2 as they were\n", False)
    moved = ["i40", f"{WORDS[10]} {WORDS[11]}", "genre2"]
    changed = tandem("index update", root, items(root, moved, TWIN))
    assert changed.out == "1 items updated, 1 as they were\n"
    assert "1 texts read" in changed.err
    assert ids(root, "--query", f"{moved[1]} | genre2", k=2) in (["i10", "i40"], ["i40", "i10"])


def test_a_column_outside_of_the_text_is_noted_without_reading(shop: Shop, tmp_path: Path):
    from tests.pipeline.shop import train

    rows = [[*row, str(10 + place)] for place, row in enumerate(catalog_rows())]
    priced = Shop(
        tmp_path, shop.log, write_rows(tmp_path / "p.csv", [*HEADER, "price"], rows), shop.model, tmp_path / "run"
    )
    train(priced.run, priced.log, priced)
    root = priced.run
    out = tandem("index update", root, items(root, [*rows[3][:3], "99"], header=[*HEADER, "price"]))
    assert (out.out, "texts read" in out.err) == ("1 items updated\n", False)
    assert [change.kind for change in PublishedIndex(Run(root)).changes] == [ChangeKind.NOTE]
    # A column that the file lacks stays as it is, and is null in an item that is new.
    out = tandem("index update", root, items(root, ["i03", f"{WORDS[3]} {WORDS[9]}", "genre3"]))
    assert (out.out, "price" in out.err) == ("1 items updated\n", True)
    done("index add", root, items(root, TWIN))
    from recommend.release import load_stages

    catalog = load_stages(Run(root), Run(root).release(), with_reranker=False).dataset.catalog
    assert catalog.items["price"].to_list()[3] == "99"
    assert catalog.titles[3] == f"{WORDS[3]} {WORDS[9]}"
    assert catalog.items.row(60, named=True) == {
        "item_id": "twin", "title": TWIN[1], "text": f"{TWIN[1]} | genre2", "genres": "genre2", "price": None
    }  # fmt: skip


def test_compaction_changes_no_answer_and_going_back_gives_what_was(root: Path):
    done("index add", root, items(root, TWIN))
    done("index update", root, items(root, ["i40", f"{WORDS[10]} {WORDS[11]}", "genre0"]))
    done("index remove", root, "i31", "i32")
    asked = [["--user", "u010"], ["--history", "i30,twin"], ["--query", WORDS[10]]]
    before = [ids(root, *one) for one in asked]
    old = Run(root).release()
    key = done("index compact", root).strip()
    assert key == Run(root).release().index != old.index
    assert [ids(root, *one) for one in asked] == before
    assert "vectors as catalog and towers have them" in done("index verify", root)
    done("index add", root, items(root, ["late", f"{WORDS[1]} {WORDS[2]}", "genre0"]))
    assert "late" in shown(root)
    back = tandem("index rollback", root)
    assert back.code == 0, back.err
    assert "1 items no longer shown: late" in back.err
    assert [ids(root, *one) for one in asked] == before
    listed = json.loads(done("index list", root, "--json"))
    assert [(line["items"], line["changes"]) for line in listed[-4:]] == [(59, 3), (59, 0), (60, 1), (59, 3)]
    assert [line["current"] for line in listed] == [False] * (len(listed) - 1) + [True]
    assert done("index list", root).splitlines()[-1].startswith("* ")
    done("index rollback", root, "--to", listed[-2]["number"])
    assert "late" in shown(root)


def test_a_rebuild_and_a_final_fit_keep_every_change(root: Path):
    done("index add", root, items(root, TWIN))
    done("index remove", root, "i31")
    done("index compact", root)
    done("index add", root, items(root, ["late", f"{WORDS[1]} {WORDS[2]}", "genre0"]))
    before = shown(root)
    asked = ["--history", "i29"]
    answer = ids(root, *asked)
    for command in ("build-index", "fit --final"):
        out = tandem(command, root)
        assert out.code == 0, out.err
        assert "carried over" in out.err
        assert "reading" not in out.err  # the encoder is the same: nothing is read again
        assert shown(root) == before, command
        assert "twin" in ids(root, *asked, k=10)
    done("build-index", root)
    assert ids(root, *asked) == answer
    assert "vectors as catalog and towers have them" in done("index verify", root)


def test_a_new_catalog_tells_itself_what_it_has_and_the_rest_stays(root: Path, shop: Shop):
    done("index add", root, items(root, TWIN, ["own", f"{WORDS[1]} {WORDS[2]}", "genre0"]))
    done("index remove", root, "i31", "i32")
    known = [*[row for row in catalog_rows() if row[0] != "i32"], TWIN]
    catalog = write_rows(root.parent / "new.csv", HEADER, known)
    log = write_rows(
        root.parent / "log.csv", ["user_id", "item_id", "timestamp"], [r for r in log_rows() if r[1] != "i32"]
    )
    done("prepare", root, log, catalog, *shop.set_options)
    assert "own" in shown(root)  # what is served has not changed yet
    done("train-retriever", root)
    out = tandem("build-index", root)
    assert out.code == 0, out.err
    assert "1 items changed live are told by the new catalog: twin" in out.err
    assert "1 items removed live are in the new catalog and shown again: i31" in out.err
    assert shown(root) == {row[0] for row in known} | {"own"}


# --- bad input


@pytest.mark.parametrize(
    ("command", "rows", "error", "patterns"),
    [
        ("index add", [["i03", "other", "genre1"], TWIN], BadInput, ["1 of 2 items .'i03'. is in the catalog already"]),
        ("index add", [TWIN, TWIN], BadInput, ["repeats an earlier id in row 2", "twin"]),
        ("index add", [["", "words", "genre1"]], BadInput, ["null or empty in row 1"]),
        ("index add", [["new", "", ""]], BadInput, ["no text comes out of the template"]),
        ("index update", [TWIN, catalog_rows()[2]], UnknownId, ["1 of 2 .*'twin'. is not in the catalog", "index add"]),
    ],
)  # fmt: skip
def test_items_that_cannot_be_taken_in(root: Path, command: str, rows, error, patterns):
    before = Run(root).release()
    refused(tandem(command, root, items(root, *rows)), error, *patterns)
    assert Run(root).release() == before


def test_ids_that_cannot_be_removed(root: Path):
    refused(tandem("index remove", root, "i01", "nobody"), UnknownId, "1 of 2 items .'nobody'. is not in the catalog")
    refused(tandem("index remove", root), BadInput, "name the items")
    refused(tandem("index remove", root, *[item_id(row) for row in range(60)]), BadInput, "at least one")
    path = root.parent / "ids.txt"
    refused(tandem("index remove", root, "--file", path), BadInput, "ids.txt")
    path.write_text("i01\n\ni02\n")
    assert done("index remove", root, "--file", path) == "2 items removed\n"
    table = items(root, ["i03", "-", "-"])
    assert done("index remove", root, "--file", table) == "1 items removed\n"


def test_a_file_without_the_columns_of_the_text_is_refused(root: Path):
    path = items(root, ["twin", "x"], header=["item_id", "brand"])
    refused(tandem("index add", root, path), BadInput, "title")


def test_without_an_index_the_command_is_named(root: Path):
    (root / "current.json").unlink()
    refused(tandem("index add", root, items(root, TWIN)), MissingStep, "build-index")
    refused(tandem("index verify", root), MissingStep, "build-index")


def test_a_second_writer_is_refused(root: Path):
    with Run(root).lock():
        refused(tandem("index add", root, items(root, TWIN)), RunBusy, "is being written by process")
        refused(tandem("index compact", root), RunBusy)
        assert len(ids(root, "--user", "u010")) == 25


def test_a_disk_that_fills_up_leaves_what_was_served(root: Path):
    done("index add", root, items(root, TWIN))
    before = ids(root, "--user", "u010")
    more = items(root, *[[f"n{row}", f"{WORDS[row]} {WORDS[row + 7]}", "genre1"] for row in range(40)])
    refused(tandem("index add", root, more, faults=Faults(file_limit=10_000)), NoSpace, "cannot write", "live")
    refused(tandem("index compact", root, faults=Faults(file_limit=2_000)), NoSpace, "cannot write")
    assert ids(root, "--user", "u010") == before
    assert done("index add", root, more) == "40 items added\n"


@pytest.mark.parametrize("command", ["index add", "index compact", "index rollback"])
def test_killed_at_any_point_the_run_still_answers_and_the_command_can_be_repeated(
    root: Path, command: str, tmp_path: Path
):
    if command != "index add":
        done("index add", root, items(root, ["first", f"{WORDS[2]} {WORDS[3]}", "genre1"]))
    if command == "index rollback":
        done("index compact", root)
    more = [items(root, TWIN)] if command == "index add" else []
    before = shown(root)
    whole = Path(shutil.copytree(root, tmp_path / "whole" / "run"))
    syncs = tandem(command, whole, *more).syncs
    after = shown(whole)
    for kill_at in sorted({1, 2, syncs // 2, syncs - 1, syncs}):
        struck = Path(shutil.copytree(root, tmp_path / f"killed-{kill_at}" / "run"))
        assert tandem(command, struck, *more, faults=Faults(kill_at_sync=kill_at)).code == -9
        assert shown(struck) in (before, after)
        if command != "index rollback":
            done(command, struck, *more)
            assert shown(struck) == after
        done("index verify", struck)


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_journal_is_named_and_an_earlier_release_serves(root: Path, harm: str):
    done("index add", root, items(root, TWIN))
    done("index compact", root)
    done("index remove", root, "i05")
    (path,) = [one for one in (root / "live").iterdir() if one.stem == Run(root).release().live]
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content[:-1] if harm == "truncate" else content)
    refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, "journal", "damaged", "index rollback")
    refused(tandem("index verify", root), CorruptArtifact, "2 faults", "journal", path.name)
    done("index rollback", root)
    assert "i05" in shown(root)
    assert "twin" in shown(root)


def test_a_journal_that_carries_no_items_is_refused(root: Path):
    PublishedIndex(Run(root)).change(Change(ChangeKind.NOTE, PublishedIndex(Run(root)).index.live_rows[:1]))
    refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, "says nothing of the items")


def test_readers_beside_a_writer(root: Path):
    path = items(root, TWIN)
    writer = start("index", "add", path, "--run", root, cwd=root.parent)
    for _ in range(2):
        assert len(ids(root, "--history", "i29")) == 25
    assert writer.wait().code == 0
    assert "twin" in ids(root, "--history", "i29", k=10)
