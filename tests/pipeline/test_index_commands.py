"""The commands of an index's life: what they say, exit codes, crowds, full disks and kills."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.change_index import add_items, compact
from pipeline.releases import verify
from store.artifacts import Run
from store.errors import BadInput, MissingStep, NoSpace, RunBusy, UnknownId
from tests.pipeline.commands import Faults, refused, start
from tests.pipeline.living import (
    LATE,
    TWIN,
    add,
    ids,
    items,
    log,
    shown,
    tandem,
)
from tests.rerank.tiny_bert import WORDS


def test_the_commands_say_what_they_did(root: Path):
    path = items(root, TWIN)
    added = tandem("index add", root, path)
    assert (added.code, added.out) == (0, "1 items added\n"), added.err
    assert tandem("index add", root, path).out == "0 items added, 1 as they were\n"
    removed = tandem("index remove", root, "i01", "--file", items(root, ["i02", "-", "-"], name="gone.csv"))
    assert removed.out == "2 items removed\n"
    assert tandem("index compact", root).out.strip() == Run(root).release().index
    assert tandem("index verify", root).out.count("\n") >= 3
    assert json.loads(tandem("index list", root, "--json").out)[-1]["items"] == 59
    assert tandem("index list", root).out.splitlines()[-1].startswith("* ")
    back = tandem("index rollback", root)
    assert back.code == 0, back.err
    refused(tandem("index rollback", root, "--to", 99), BadInput, "no release 99")
    refused(tandem("index update", root, items(root, LATE)), UnknownId, "'late'")
    answer = tandem("recommend", root, "--history", "i29", "--json")
    assert "twin" in [item["item_id"] for item in json.loads(answer.out)["items"]]
    (root / "current.json").unlink()
    refused(tandem("index add", root, path), MissingStep, "build-index")


def test_a_second_writer_is_refused_while_others_read(root: Path):
    with Run(root).lock():
        refused(tandem("index add", root, items(root, TWIN)), RunBusy, "is being written by process")
        assert len(ids(root, ["i29"])) == 25
    writer = start("index", "add", items(root, TWIN), "--run", root, cwd=root.parent)
    assert len(ids(root, ["i29"])) == 25
    assert writer.wait().code == 0
    assert "twin" in ids(root, ["i29"], k=10)


def test_a_disk_that_fills_up_leaves_what_was_served(root: Path):
    add(root, TWIN)
    before = ids(root, ["i29"])
    more = items(root, *[[f"n{row}", f"{WORDS[row]} {WORDS[row + 7]}", "genre1"] for row in range(40)])
    refused(tandem("index add", root, more, faults=Faults(file_limit=10_000)), NoSpace, "cannot write", "live")
    refused(tandem("index compact", root, faults=Faults(file_limit=2_000)), NoSpace, "cannot write")
    assert ids(root, ["i29"]) == before
    assert len(add_items(Run(root), more, log=log(root)).ids) == 40


@pytest.mark.parametrize("command", ["index add", "index compact"])
def test_killed_at_any_point_the_run_answers_and_the_command_can_be_repeated(root: Path, command: str, tmp_path: Path):
    if command == "index compact":
        add(root, LATE)
    more = [items(root, TWIN)] if command == "index add" else []
    before = shown(root)
    whole = Path(shutil.copytree(root, tmp_path / "whole" / "run"))
    syncs = tandem(command, whole, *more).syncs
    after = shown(whole)
    assert (after > before) == (command == "index add")
    for kill_at in sorted({1, syncs // 2, syncs}):
        struck = Path(shutil.copytree(root, tmp_path / f"killed-{kill_at}" / "run"))
        assert tandem(command, struck, *more, faults=Faults(kill_at_sync=kill_at)).code == -9
        assert shown(struck) in (before, after)
        add(struck, TWIN) if command == "index add" else compact(Run(struck), log=log(struck))
        assert shown(struck) == after
        verify(Run(struck), log=log(struck))
