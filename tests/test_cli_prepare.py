"""Files and options that `prepare` must refuse: everything wrong at once, with rows, and what to do."""

import json
from pathlib import Path

import pytest

from store.errors import BadInput
from tests.pipeline.commands import Done, refused, run
from tests.pipeline.shop import START_S, Shop, catalog_rows, log_rows, write_rows

LOG, CATALOG = ["user_id", "item_id", "timestamp"], ["item_id", "title", "genres"]


def prepared(folder: Path, log: Path, catalog: Path, *options: object) -> Done:
    return run("prepare", "--run", folder / "new", log, catalog, *options, cwd=folder)


def test_a_missing_column_is_answered_with_the_nearest_and_the_map(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", ["userid", "item_id", "timestamp"], log_rows())
    told = refused(prepared(tmp_path, log, shop.catalog), BadInput, "user_id", "userid", "--map user_id=userid")
    assert "timestamp" in told
    assert prepared(tmp_path, log, shop.catalog, "--map", "user_id=userid").code == 0


def test_an_empty_file(shop: Shop, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    write_rows(tmp_path / "headed.csv", LOG, [])
    for name in ("empty.csv", "headed.csv"):
        refused(prepared(tmp_path, tmp_path / name, shop.catalog), BadInput, name, r"empty|no row")


def test_a_user_column_of_nulls(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", LOG, [["", item, time] for _, item, time in log_rows()])
    refused(prepared(tmp_path, log, shop.catalog), BadInput, r"'user_id' (holds nothing but nulls|is null or empty)")


def test_ids_of_mixed_types(shop: Shop, tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {"user_id": 1, "item_id": "i01", "timestamp": START_S},
        {"user_id": "x", "item_id": "i02", "timestamp": START_S},
    ]
    log.write_text("\n".join(map(json.dumps, rows)))
    refused(prepared(tmp_path, log, shop.catalog), BadInput, r"'user_id' mixes .*one kind")


def test_timestamps_in_the_wrong_unit(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", LOG, [[user, item, f"{time}000"] for user, item, time in log_rows()])
    refused(prepared(tmp_path, log, shop.catalog), BadInput, "makes no sense as seconds", "data.timestamp_unit=ms")
    assert prepared(tmp_path, log, shop.catalog, "--set", "data.timestamp_unit=ms").code == 0


def test_an_item_that_the_catalog_lacks_and_how_to_drop_it(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", LOG, [*log_rows(), ["u999", "i99", str(START_S)]])
    refused(prepared(tmp_path, log, shop.catalog), BadInput, "i99", rf"row {len(log_rows()) + 2}", "unknown_items")
    assert prepared(tmp_path, log, shop.catalog, "--set", "data.unknown_items=drop").code == 0


def test_an_item_without_text(shop: Shop, tmp_path):
    rows = catalog_rows()
    rows[6] = [rows[6][0], "", ""]
    catalog = write_rows(tmp_path / "catalog.csv", CATALOG, rows)
    refused(prepared(tmp_path, shop.log, catalog), BadInput, "text", r"row 8")


def test_item_ids_that_stand_twice(shop: Shop, tmp_path):
    catalog = write_rows(tmp_path / "catalog.csv", CATALOG, [*catalog_rows(), catalog_rows()[4]])
    refused(
        prepared(tmp_path, shop.log, catalog), BadInput, r"'item_id' repeats an earlier id in row 62 \(such as 'i04'\)"
    )


def test_a_template_with_a_column_that_is_not_there(shop: Shop, tmp_path):
    done = prepared(tmp_path, shop.log, shop.catalog, "--template", "{title} | {genre}")
    refused(done, BadInput, "genre", "'?genres'?")


def test_all_faults_of_both_files_are_told_at_once(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", LOG, [["", *log_rows()[0][1:]], *log_rows()[1:]])
    catalog = write_rows(tmp_path / "catalog.csv", CATALOG, [*catalog_rows(), catalog_rows()[4]])
    told = refused(prepared(tmp_path, log, catalog), BadInput, "log.csv", "catalog.csv", "row 2", "row 62")
    assert told.count("\n  - ") == 2


def test_an_unknown_setting_and_the_nearest_known_one(shop: Shop, tmp_path):
    done = prepared(tmp_path, shop.log, shop.catalog, "--set", "data.timestamp_units=ms")
    refused(done, BadInput, "unknown key 'data.timestamp_units'; the nearest known one is 'data.timestamp_unit'")
    (tmp_path / "own.toml").write_text('[data]\ntimestampunit = "ms"\n')
    done = prepared(tmp_path, shop.log, shop.catalog, "--config", tmp_path / "own.toml")
    refused(
        done, BadInput, r"own\.toml: unknown key 'data.timestampunit'; the nearest known one is 'data.timestamp_unit'"
    )
    done = run("train-retriever", "--run", shop.run, "--set", "retriever.recency.epoch=2", cwd=tmp_path)
    refused(done, BadInput, "'retriever.recency.epochs'")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--map", "user_id"], "'user_id' is not of the form user_id=column"),
        (["--map", "user=user_id"], "user_id"),
        (["--set", "split.kind=random"], "split.kind.*'leave-one-out', 'temporal' or 'cold-items'"),
        (["--config", "none.toml"], "there is no config file none.toml"),
        (["--users-table", "none.csv"], "none.csv"),
        (["--set", "split.kind=temporal", "--set", "split.cut_time=1"], "cut"),
    ],
)
def test_bad_options_of_prepare(shop: Shop, tmp_path, options, pattern):
    refused(prepared(tmp_path, shop.log, shop.catalog, *options), BadInput, pattern)


def test_files_that_are_not_there_or_of_no_known_kind(shop: Shop, tmp_path):
    refused(prepared(tmp_path, tmp_path / "none.csv", shop.catalog), BadInput, "none.csv")
    (tmp_path / "log.xlsx").write_bytes(b"PK")
    refused(prepared(tmp_path, tmp_path / "log.xlsx", shop.catalog), BadInput, "xlsx")
    refused(prepared(tmp_path, tmp_path, shop.catalog), BadInput, str(tmp_path))


def test_a_refused_prepare_leaves_the_run_as_it_was(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    log = write_rows(tmp_path / "log.csv", LOG, [*log_rows(), ["u999", "i99", str(START_S)]])
    refused(run("prepare", "--run", root, log, shop.catalog, cwd=tmp_path), BadInput)
    assert {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    } == before


def test_the_order_is_told_and_above_all_where_no_time_gives_it(shop: Shop, tmp_path):
    assert "order timestamp" in prepared(tmp_path, shop.log, shop.catalog).err
    log = write_rows(tmp_path / "log.csv", LOG[:2], [row[:2] for row in log_rows()])
    done = prepared(tmp_path, log, shop.catalog)
    assert done.code == 0, done.err
    line = "the order of the file is taken as the order of time"
    assert f"no time column: {line}; name a column that holds times by --map timestamp=COLUMN" in done.err
    done = prepared(tmp_path, shop.log, shop.catalog, "--set", "data.timestamp_unit=none")
    assert f"times are not read (data.timestamp_unit=none): {line}" in done.err
