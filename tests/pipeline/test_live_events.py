"""What a server has learnt goes into the next data set, and whom it was told to forget does not."""

import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.answer import Wish, answer
from pipeline.export import Asked, export
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.workspace import Workspace, open_workspace
from recommend.events import Event, Events
from recommend.histories import known_of
from recommend.recommender import Rerank
from store.artifacts import Run
from store.errors import UnknownId
from tests.pipeline.commands import run as run_command
from tests.pipeline.shop import Shop, log_rows, quiet, write_rows


def prepared(root: Path, shop: Shop) -> Workspace:
    log = RunLog(Run(root), "test")
    return prepare(Run(root), shop.log, shop.catalog, users=None, config=shop.config, log=log)


def test_events_come_and_the_forgotten_go(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shop.copy(tmp_path)
    before = prepared(root, shop)
    events = Events(root)
    assert prepared(root, shop).dataset_key == before.dataset_key  # nothing was learnt yet
    events.add([Event("a", "new user", "i05", 1_700_000_000), Event("b", "u001", "i07", 1_700_000_001)])
    events.forget("u002")
    capsys.readouterr()
    after = prepared(root, shop)
    theirs = sum(row[0] == "u002" for row in log_rows())
    assert after.dataset_key != before.dataset_key
    assert f"added: 2 events of the service; left out: {theirs}" in capsys.readouterr().err
    assert "u002" not in after.dataset.users
    assert len(after.dataset.interactions.item_rows) == len(log_rows()) + 2 - theirs
    new = after.dataset.interactions[after.dataset.users.row("new user")]
    assert [after.dataset.catalog.vocabulary.ids[row] for row in new] == ["i05"]
    assert after.dataset.interactions[after.dataset.users.row("u001")][-1] == 7
    assert after.manifest["report"]["load"]["added"] == 2
    assert (before.dataset.last_event, after.dataset.last_event) == (0, 2)
    assert prepared(root, shop).dataset_key == after.dataset_key


def test_without_times_what_was_taken_in_counts_once(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    rows = [row[:2] for row in log_rows()]
    log_path, log = write_rows(tmp_path / "log.csv", ["user_id", "item_id"], rows), RunLog(Run(root), "test")
    events = Events(root)
    events.add([Event("a", "new user", "i07", 1_700_000_000), Event("b", "new user", "i09", 1_700_000_001)])
    ws = prepare(Run(root), log_path, shop.catalog, users=None, config=shop.config, log=log)
    assert known_of("new user", ws.dataset, events).item_rows.tolist() == [7, 9]


def test_on_the_command_line_who_is_forgotten_is_nobody_and_events_count(root: Path, tmp_path: Path) -> None:
    ws, events = open_workspace(root), Events(root)
    users = ws.dataset.users
    events.add([Event("a", "new user", "i30", int(time.time())), Event("b", "u004", "i40", int(time.time()))])
    events.forget("u003")
    with pytest.raises(UnknownId, match=r"'u003' asked to be forgotten.*--history"):
        answer(ws, Wish(user="u003"), as_json=True)
    with pytest.raises(UnknownId, match="nobody"):
        answer(ws, Wish(user="nobody"), as_json=True)
    assert answer(ws, Wish(user="new user", rerank=Rerank.NEVER), as_json=True).items[0].item_id == "i31"
    assert "i41" in [item.item_id for item in answer(ws, Wish(user="u004", rerank=Rerank.NEVER), as_json=True).items]
    file = tmp_path / "all.parquet"
    how = {"k": 3, "depth": 0, "users": 0, "rerank": Rerank.NEVER, "towers_only": False}
    export(ws, Asked.NEXT, file, **how, log=quiet(ws))
    assert set(pl.read_parquet(file)["user_id"]) == set(users.ids) - {"u003"}


def test_events_are_exported_by_a_command(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    Events(root).add([Event("a", "u1", "i05", 5)])
    file = tmp_path / "events.parquet"
    assert run_command("events", "export", "--run", root, "-o", file, cwd=tmp_path).code == 0
    assert pl.read_parquet(file).rows() == [("u1", "i05", 5)]


def test_keys_are_made_listed_and_revoked_by_commands(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    made = run_command("keys", "add", "--run", root, "--scope", "write", "--days", "2", "--note", "shop", cwd=tmp_path)
    name = made.out.split("_")[1]
    listed = run_command("keys", "list", "--run", root, cwd=tmp_path).out
    assert f"{name}  good  write" in listed
    assert made.out.strip().split("_", 2)[2] not in listed
    assert run_command("keys", "revoke", name, "--run", root, cwd=tmp_path).out.strip() == name
    assert f"{name}  closed" in run_command("keys", "list", "--run", root, cwd=tmp_path).out
