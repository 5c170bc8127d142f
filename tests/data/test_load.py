"""Loading: the same data set from every kind of file."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.assemble import Duplicates, Order
from data.load import LoadConfig, UnknownItems, load_dataset, load_interactions, load_items, load_users
from data.schema import Histories
from data.times import TimestampUnit
from data.vocabulary import Vocabulary
from store.errors import BadInput
from tests.data.files import DAY, ITEMS, LOG, NOON, TAKEN, load, taken, write


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".csv.gz", ".tsv.gz", ".jsonl.gz"]
)
def test_every_kind_of_file_gives_the_same_data_set(tmp_path, suffix):
    log, items = write(tmp_path / f"log{suffix}", LOG), write(tmp_path / f"items{suffix}", ITEMS)
    dataset, report = load_dataset(log, items, LoadConfig())
    assert taken(dataset) == TAKEN
    assert dataset.users.ids == ("u2", "u1")
    assert dataset.catalog.vocabulary.ids == ("1", "01", " b", "new")
    assert dataset.catalog.texts == ["Alien (1979) | Horror, Sci-Fi", "Brazil (1985)", "Clue | Comedy", "Diva | Crime"]
    assert dataset.catalog.titles == ["Alien (1979)", "Brazil (1985)", "Clue", "Diva"]
    times = [NOON + 1, NOON + 5, NOON + 2, NOON + 9, NOON + 9]
    assert dataset.interactions.timestamps.tolist() == times
    assert (report.rows_read, report.interactions, report.users, report.items) == (5, 5, 2, 4)
    assert report.items_without_interactions == 1
    assert report.order == Order.TIMESTAMP
    assert report.first_time == "2014-05-13 16:53:21"
    assert json.loads(report.model_dump_json())["dropped"] == {"exact_copies": 0}


def test_whole_numbers_become_ids_as_they_are_written(tmp_path):
    log = write(tmp_path / "log.parquet", [{"user_id": 7, "item_id": 10, "timestamp": NOON}])
    items = write(tmp_path / "items.jsonl", [{"item_id": 10, "title": "x"}])
    dataset, _ = load_dataset(log, items, LoadConfig())
    assert taken(dataset) == {"7": ["10"]}


def test_positions_go_before_times_and_times_may_then_be_missing(folder):
    rows = [
        {"user_id": "u", "item_id": "1", "timestamp": NOON, "position": 2},
        {"user_id": "u", "item_id": "01", "timestamp": None, "position": 0},
        {"user_id": "u", "item_id": " b", "timestamp": NOON + 5, "position": 1},
    ]
    write(folder / "log.csv", rows)
    dataset, report = load(folder)
    assert taken(dataset) == {"u": ["01", " b", "1"]}
    assert dataset.interactions.timestamps.tolist() == [Histories.NO_TIME, NOON + 5, NOON]
    assert (report.order, report.rows_without_time) == (Order.POSITION, 1)


def test_without_time_or_position_the_order_of_the_file_stands(folder):
    dataset, report = load(folder, timestamp_unit=TimestampUnit.NONE)
    assert taken(dataset) == {"u2": ["01", " b"], "u1": ["1", "01", "1"]}
    assert dataset.interactions.timestamps is None
    assert (report.order, report.first_time, report.rows_without_time) == (Order.FILE, None, 5)


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("s", [NOON, NOON + DAY]),
        ("s", [NOON + 0.25, NOON + DAY + 0.75]),
        ("ms", [NOON * 1_000 + 999, (NOON + DAY) * 1_000]),
        ("us", [NOON * 10**6, (NOON + DAY) * 10**6]),
        ("ns", [NOON * 10**9, (NOON + DAY) * 10**9]),
        ("iso", ["2014-05-13T16:53:20Z", "2014-05-14 18:53:20+02:00"]),
        ("iso", ["2014-05-13T16:53:20", "2014-05-14T16:53:20.5"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_times_of_every_unit_become_seconds(tmp_path, unit, written, suffix):
    rows = [{"user_id": "u", "item_id": "1", "timestamp": time} for time in written]
    frame = load_interactions(write(tmp_path / f"log{suffix}", rows), LoadConfig(timestamp_unit=unit))
    assert frame["timestamp"].to_list() == [NOON, NOON + DAY]


def test_typed_dates_need_no_unit(tmp_path):
    times = pl.Series("timestamp", [NOON, NOON + 1]).cast(pl.Int64) * 1000
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": times.cast(pl.Datetime("ms"))})
    frame.write_parquet(tmp_path / "log.parquet")
    assert load_interactions(tmp_path / "log.parquet", LoadConfig())["timestamp"].to_list() == [NOON, NOON + 1]
    day = frame.with_columns(pl.col("timestamp").cast(pl.Date))
    day.write_parquet(tmp_path / "log.parquet")
    assert load_interactions(tmp_path / "log.parquet", LoadConfig())["timestamp"].to_list() == [NOON // DAY * DAY] * 2


def test_exact_copies_of_a_row_go_and_repeats_stay_unless_told(folder):
    again = [*LOG, LOG[0], LOG[1]]
    write(folder / "log.csv", again)
    dataset, report = load(folder)
    assert taken(dataset) == TAKEN
    assert report.dropped == {"exact_copies": 2}
    dataset, report = load(folder, duplicates=Duplicates.KEEP_FIRST)
    assert taken(dataset)["u1"] == ["1", "01"]
    assert dataset.interactions.timestamps.tolist()[2:] == [NOON + 2, NOON + 9]
    assert report.dropped == {"exact_copies": 2, "repeated_pairs": 1}
    dataset, _ = load(folder, duplicates=Duplicates.KEEP_LAST)
    assert taken(dataset)["u1"] == ["1", "01"]
    assert dataset.interactions.timestamps.tolist()[2:] == [NOON + 9, NOON + 9]


def test_low_ratings_and_unknown_items_are_dropped_and_counted_when_told(folder):
    write(folder / "log.csv", [*LOG, {"user_id": "u9", "item_id": "zzz", "timestamp": NOON, "rating": 5.0}])
    dataset, report = load(folder, min_rating=3, unknown_items=UnknownItems.DROP)
    assert taken(dataset) == {"u2": ["01"], "u1": ["1", "01"]}
    assert report.dropped == {"exact_copies": 0, "below_min_rating": 2, "unknown_items": 1}
    assert (report.users_read, report.users) == (3, 2)


def test_what_was_rated_too_low_is_known_beside_the_histories_and_is_none_of_them(folder):
    low = {"user_id": "u9", "item_id": "new", "timestamp": NOON, "rating": 1.0}
    write(folder / "log.csv", [*LOG, low, {**low, "item_id": "zzz"}])
    dataset, report = load(folder, min_rating=3)
    assert report.dropped == {"exact_copies": 0, "below_min_rating": 4}
    assert "u9" not in dataset.users
    names, low_rated = dataset.catalog.vocabulary, dataset.disliked
    users = Vocabulary(["u1", "somebody", "u9", "u2"])
    assert [names.rows(ids).tolist() for ids in (["1"], [], ["new"], [" b"])] == [
        low_rated.of(users)[place].tolist() for place in range(4)
    ]
    assert low_rated.of(users).timestamps.tolist() == [NOON + 2, NOON, NOON + 1]
    assert [dataset.holds(user) for user in ("u1", "u9", "somebody")] == [True, True, False]
    assert load(folder, min_rating=1, unknown_items=UnknownItems.DROP)[0].disliked is None
    assert load(folder, unknown_items=UnknownItems.DROP)[0].disliked is None


def test_ratings_stay_beside_their_items(folder):
    dataset, _ = load(folder)
    assert dataset.interactions.ratings.tolist() == [2, 4, 1, 5, 3]  # as TAKEN, user by user
    write(folder / "log.csv", [{**LOG[0], "rating": None}, *LOG[1:]])
    dataset, _ = load(folder, duplicates=Duplicates.KEEP_LAST)
    np.testing.assert_array_equal(dataset.interactions.ratings, [2, np.nan, 5, 3])
    write(folder / "log.csv", [{name: value for name, value in row.items() if name != "rating"} for row in LOG])
    assert load(folder)[0].interactions.ratings is None


def test_a_users_table_is_checked_and_counted(folder):
    path = write(folder / "users.csv", [{"id": "u1", "age": 3}, {"id": "u3", "age": 4}])
    mapped = LoadConfig(columns={"users.user_id": "id"})
    _, report = load_dataset(folder / "log.csv", folder / "items.csv", mapped, path)
    assert report.users_described == 1
    assert load_users(path, mapped).columns == ["user_id", "age"]
    with pytest.raises(
        BadInput, match=r"users.csv: no column 'user_id'; the columns are 'id', 'age': .* --map users.user_id=id"
    ):
        load_dataset(folder / "log.csv", folder / "items.csv", LoadConfig(), path)


def test_columns_are_mapped_for_all_files_or_for_one(folder):
    log = [{"visitor": r["user_id"], "movie": r["item_id"], "timestamp": r["timestamp"]} for r in LOG]
    write(folder / "log.csv", log)
    expected = {"user_id": "visitor", "item_id": "movie"}
    assert taken(load(folder, columns=expected)[0]) == TAKEN
    write(folder / "items.csv", [{"id": r["item_id"], "name": r["title"], "item_id": "x"} for r in ITEMS])
    both = {**expected, "catalog.item_id": "id", "title": "name"}
    dataset, _ = load(folder, columns=both, template="{name}")
    assert dataset.catalog.vocabulary.ids == ("1", "01", " b", "new")
    assert dataset.catalog.texts == ["Alien (1979)", "Brazil (1985)", "Clue", "Diva"]


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Enum(["1", "01", " b", "new", "u1", "u2"])])
def test_ids_that_are_categories_are_text(tmp_path, kind):
    for name, rows, columns in (("log", LOG, ["user_id", "item_id"]), ("items", ITEMS, ["item_id"])):
        frame = pl.DataFrame(rows, infer_schema_length=None)
        frame.with_columns(pl.col(columns).cast(kind)).write_parquet(tmp_path / f"{name}.parquet")
    dataset, _ = load_dataset(tmp_path / "log.parquet", tmp_path / "items.parquet", LoadConfig())
    assert taken(dataset) == TAKEN


def test_an_items_own_columns_follow_its_text(folder):
    items = load_items(folder / "items.csv", LoadConfig())
    assert items.columns == ["item_id", "title", "text", "genres"]


def test_a_catalog_with_lists_and_without_titles_is_described_by_what_there_is(tmp_path):
    rows = [
        {"item_id": "a", "categories": [["Beauty", "Hair"], ["Gifts"]], "year": 1995.0},
        {"item_id": "b", "categories": ["Beauty"], "name": "Comb"},
    ]
    items = load_items(write(tmp_path / "items.jsonl", rows), LoadConfig())
    assert items["text"].to_list() == ["Beauty, Hair, Gifts", "Comb | Beauty"]
    assert items["title"].to_list() == ["Beauty, Hair, Gifts", "Comb"]


# ---- properties ----

users_and_times = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("123"), st.integers(NOON, NOON + 3)), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(rows=users_and_times)
def test_any_log_comes_back_user_by_user_stable_in_time(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("log")
    log = [{"user_id": u, "item_id": i, "timestamp": t, "row": n} for n, (u, i, t) in enumerate(rows)]
    write(folder / "log.parquet", log)
    write(folder / "items.parquet", [{"item_id": name, "title": name} for name in "321"])
    dataset, _ = load_dataset(folder / "log.parquet", folder / "items.parquet", LoadConfig())
    expected: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    assert taken(dataset) == expected
    assert dataset.users.ids == tuple(dict.fromkeys(user for user, _, _ in rows))
    assert np.all(np.diff(dataset.interactions.offsets) > 0)
