"""Prepared data come back as they were, fast, and damaged ones are refused."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepared import dataset_fingerprint, load_prepared, save_prepared
from data.schema import Catalog, Dataset, Disliked, Histories
from data.vocabulary import Vocabulary
from store.artifacts import Run, Verify
from store.errors import CorruptArtifact, MissingStep


def dataset(lists: list[list[int]], items: list[str], times: list[int] | None = None) -> Dataset:
    log = Histories.of(lists)
    if times is not None:
        log = replace(log, timestamps=np.array(times, dtype=np.int64))
    frame = pl.DataFrame({"item_id": items, "title": items, "text": items, "own": range(len(items))})
    return Dataset(log, Vocabulary([f"0{n}" for n in range(len(lists))]), Catalog(frame, Vocabulary(items)))


SMALL = dataset([[2, 0], [], [1]], ["a", "01", " ü"], [5, Histories.NO_TIME, 7])
LOW = Disliked(
    replace(Histories.of([[1, 0], [2]]), timestamps=np.array([3, Histories.NO_TIME, 4])), Vocabulary(["02", "x"])
)


def save(folder: Path, data: Dataset = SMALL) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    return save_prepared(folder, data, report={"rows": 3}, made_from={"log": "x.csv"})


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.users.ids == expected.users.ids
    assert found.catalog.vocabulary.ids == expected.catalog.vocabulary.ids
    assert found.catalog.items.equals(expected.catalog.items)
    for name in ("item_rows", "offsets", "timestamps"):
        one, other = getattr(found.interactions, name), getattr(expected.interactions, name)
        if other is None:
            assert one is None
        else:
            assert one.dtype == np.int64
            assert one.tolist() == other.tolist()
    ours, theirs = found.interactions.ratings, expected.interactions.ratings
    assert (ours is None) == (theirs is None)
    if ours is not None:
        np.testing.assert_array_equal(ours, theirs)


def test_ratings_come_back_as_they_were_and_count_in_the_fingerprint(tmp_path):
    ratings = np.array([4.5, np.nan, 1], dtype=np.float32)
    rated = replace(SMALL, interactions=replace(SMALL.interactions, ratings=ratings))
    manifest = save(tmp_path / "data", rated)
    found, _ = load_prepared(tmp_path / "data")
    assert_same(found, rated)
    assert manifest["fingerprint"] == dataset_fingerprint(found) != dataset_fingerprint(SMALL)


def test_a_data_set_comes_back_as_it_was(tmp_path):
    manifest = save(tmp_path / "data")
    found, loaded = load_prepared(tmp_path / "data", verify=Verify.FULL)
    assert_same(found, SMALL)
    assert loaded == manifest
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (3, 3, 3)
    assert manifest["report"] == {"rows": 3}
    assert manifest["fingerprint"] == dataset_fingerprint(found)


@pytest.mark.parametrize("timed", [True, False])
def test_what_was_rated_too_low_comes_back_and_makes_no_other_data_set(tmp_path, timed):
    low = LOW if timed else replace(LOW, interactions=replace(LOW.interactions, timestamps=None))
    plain, manifest = save(tmp_path / "plain"), save(tmp_path / "data", replace(SMALL, disliked=low))
    found, _ = load_prepared(tmp_path / "data", verify=Verify.FULL)
    assert_same(found, SMALL)
    assert found.disliked.users.ids == ("02", "x")
    assert found.disliked.interactions.item_rows.tolist() == [1, 0, 2]
    assert found.disliked.interactions.offsets.tolist() == [0, 2, 3]
    times = found.disliked.interactions.timestamps
    assert times.tolist() == [3, Histories.NO_TIME, 4] if timed else times is None
    assert manifest["fingerprint"] == plain["fingerprint"]
    # A data set without any is what older versions wrote, too.
    assert "disliked.parquet" not in plain["files"]
    assert load_prepared(tmp_path / "plain")[0].disliked is None
    (tmp_path / "data" / "disliked.parquet").unlink()
    with pytest.raises(CorruptArtifact, match=r"python cli\.py prepare"):
        load_prepared(tmp_path / "data")


def test_it_lives_in_an_artifact_as_well_as_in_a_folder_of_the_run(tmp_path):
    run = Run(tmp_path)
    key = run.write_artifact("dataset", {"log": "x"}, save)
    run.write_folder("data", save)
    assert_same(load_prepared(run.artifact("dataset", key))[0], SMALL)
    assert_same(load_prepared(run.data_dir)[0], SMALL)


@pytest.mark.parametrize(
    "other",
    [
        dataset([[0, 2], [], [1]], ["a", "01", " ü"], [5, Histories.NO_TIME, 7]),
        dataset([[2, 0], [1], []], ["a", "01", " ü"], [5, Histories.NO_TIME, 7]),
        dataset([[2, 0], [], [1]], ["a", "01", " ü"], [5, 6, 7]),
        dataset([[2, 0], [], [1]], ["a", "01", " ü"]),
        dataset([[2, 0], [], [1]], ["a", "01", " u"], [5, Histories.NO_TIME, 7]),
    ],
)
def test_the_fingerprint_follows_every_part(other):
    assert dataset_fingerprint(other) != dataset_fingerprint(SMALL)


def test_nothing_prepared_names_the_command(tmp_path):
    with pytest.raises(MissingStep, match=r"python cli\.py prepare"):
        load_prepared(tmp_path / "data")


@pytest.mark.parametrize("name", ["interactions.parquet", "users.parquet", "items.parquet", "dataset.json"])
@pytest.mark.parametrize("damage", ["truncate", "delete", "alter"])
def test_damaged_data_are_refused(tmp_path, name, damage):
    save(tmp_path)
    path = tmp_path / name
    if damage == "delete":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncate" else bytes(len(content)))
    with pytest.raises(CorruptArtifact, match=r"python cli\.py prepare"):
        load_prepared(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(0, 4)), max_size=6),
    items=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=5, max_size=5, unique=True),
    timed=st.booleans(),
)
def test_any_data_set_comes_back(tmp_path_factory, lists, items, timed):
    folder = tmp_path_factory.mktemp("data")
    data = dataset(lists, items, list(range(sum(map(len, lists)))) if timed else None)
    save(folder, data)
    assert_same(load_prepared(folder)[0], data)


def test_a_fresh_process_sees_the_same_fingerprint(tmp_path):
    save(tmp_path)
    code = (
        "import sys, pathlib; from data.prepared import load_prepared, dataset_fingerprint;"
        "print(dataset_fingerprint(load_prepared(pathlib.Path(sys.argv[1]))[0]))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == json.loads((tmp_path / "dataset.json").read_text())["fingerprint"]


def test_a_million_interactions_open_in_half_a_second(tmp_path):
    rng = np.random.default_rng(0)
    users, rows = 50_000, 1_000_000
    log = Histories(
        rng.integers(0, 10_000, rows),
        np.linspace(0, rows, users + 1).astype(np.int64),
        rng.integers(10**9, 2 * 10**9, rows),
    )
    names = [f"item {row}" for row in range(10_000)]
    frame = pl.DataFrame({"item_id": names, "title": names, "text": names})
    save(tmp_path, Dataset(log, Vocabulary(map(str, range(users))), Catalog(frame, Vocabulary(names))))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        load_prepared(tmp_path)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5
