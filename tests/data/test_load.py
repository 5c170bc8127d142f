"""Loading: the same data set from every kind of file, and every fault told at once, with its rows."""

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.assemble import Duplicates, Order
from data.columns import TableKind, detect_columns, detect_mapping
from data.load import LoadConfig, UnknownItems, load_dataset, load_interactions, load_items, load_users
from data.schema import Dataset, Histories
from data.times import TimestampUnit
from store.errors import BadInput

DAY = 86_400
NOON = 1_400_000_000  # 2014-05-13, in Unix seconds

LOG = [
    {"user_id": "u2", "item_id": "01", "timestamp": NOON + 5, "rating": 4.0},
    {"user_id": "u1", "item_id": "1", "timestamp": NOON + 9, "rating": 5.0},
    {"user_id": "u2", "item_id": " b", "timestamp": NOON + 1, "rating": 2.0},
    {"user_id": "u1", "item_id": "01", "timestamp": NOON + 9, "rating": 3.0},
    {"user_id": "u1", "item_id": "1", "timestamp": NOON + 2, "rating": 1.0},
]
ITEMS = [
    {"item_id": "1", "title": "Alien (1979)", "genres": "Horror|Sci-Fi"},
    {"item_id": "01", "title": "Brazil (1985)", "genres": None},
    {"item_id": " b", "title": "Clue", "genres": "Comedy"},
    {"item_id": "new", "title": "Diva", "genres": "Crime"},
]
# By time; the two rows of u1 at NOON + 9 keep the order of the file.
TAKEN = {"u2": [" b", "01"], "u1": ["1", "1", "01"]}


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif name.endswith(".parquet"):
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
        return path
    else:
        frame = pl.DataFrame(rows, infer_schema_length=None)
        content = frame.write_csv(separator="\t" if name.endswith(".tsv") else ",").encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def taken(dataset: Dataset) -> dict[str, list[str]]:
    names = dataset.catalog.vocabulary.ids
    return {user: [names[row] for row in dataset.interactions[place]] for place, user in enumerate(dataset.users.ids)}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.csv", ITEMS)
    return tmp_path


def load(folder: Path, **options):
    return load_dataset(folder / "log.csv", folder / "items.csv", LoadConfig(**options))


def faults_of(folder: Path, log: list[dict] | str, items: list[dict] | str = ITEMS, **options) -> str:
    for name, content in (("log", log), ("items", items)):
        (folder / f"{name}.csv").unlink(missing_ok=True)
        if isinstance(content, str):
            (folder / f"{name}.csv").write_text(content)
        else:
            write(folder / f"{name}.csv", content)
    with pytest.raises(BadInput) as caught:
        load(folder, **options)
    return str(caught.value)


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


# ---- bad input ----


def test_a_missing_column_lists_what_there_is_and_how_to_map_it(folder):
    told = faults_of(folder, [{"userId": "u", "item_id": "1", "timestamp": NOON}])
    assert "no column 'user_id'; the columns are 'userId', 'item_id', 'timestamp'" in told
    assert "if 'userId' is meant, use --map user_id=userId" in told


def test_a_mapped_column_that_is_not_there_is_told_with_the_nearest(folder):
    told = faults_of(folder, LOG, columns={"user_id": "user_i", "timestamp": "rating_time"})
    assert "no column 'user_i', which is to be user_id; did you mean 'user_id'?" in told
    assert "no column 'rating_time', which is to be timestamp" in told
    assert "cannot map 'usr'; did you mean 'user'" not in told
    assert "cannot map 'user'; did you mean 'user_id'?" in faults_of(folder, LOG, columns={"user": "user_id"})


@pytest.mark.parametrize(("content", "told"), [("", "neither columns nor rows"), ("user_id,item_id\n", "but no rows")])
def test_an_empty_file_is_told(folder, content, told):
    assert told in faults_of(folder, content)
    assert told in faults_of(folder, LOG, content)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_column_of_nulls_is_told(tmp_path, suffix):
    rows = [{"user_id": None, "item_id": "1", "timestamp": NOON}] * 3
    with pytest.raises(BadInput, match="'user_id' holds nothing but nulls in all 3 rows"):
        load_interactions(write(tmp_path / f"log{suffix}", rows), LoadConfig())


def test_single_nulls_are_told_with_their_rows_as_the_file_counts_them(folder):
    rows = [{**row} for row in LOG * 3]
    for place in (0, 3, 5, 6, 7, 10, 14):
        rows[place]["user_id"] = None
    assert "'user_id' is null or empty in rows 2, 5, 7, 8, 9 and 2 more" in faults_of(folder, rows)
    write(folder / "log.parquet", rows)
    with pytest.raises(BadInput, match="rows 1, 4, 6, 7, 8 and 2 more"):
        load_interactions(folder / "log.parquet", LoadConfig())


def test_blank_lines_are_no_rows_but_count(folder):
    text = "user_id,item_id,timestamp\nu,1,1400000000\n\n,1,1400000001\n\n"
    assert "'user_id' is null or empty in row 4" in faults_of(folder, text)


def test_mixed_kinds_of_ids_are_told_with_a_row_of_each(tmp_path):
    rows = [{"user_id": "u", "item_id": 1}, {"user_id": "u", "item_id": "1"}, {"user_id": "u", "item_id": 2}]
    with pytest.raises(BadInput, match=r"'item_id' mixes numbers \(as in row 1\) and text \(as in row 2\)"):
        load_interactions(write(tmp_path / "log.jsonl", rows), LoadConfig())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_floating_point_ids_are_refused(tmp_path, suffix):
    rows = [{"user_id": 1.0, "item_id": "1"}, {"user_id": None, "item_id": "1"}]
    with pytest.raises(BadInput, match=r"'user_id' holds floating-point numbers \(such as 1.0\)"):
        load_interactions(write(tmp_path / f"log{suffix}", rows), LoadConfig())


def test_whole_numbers_beyond_64_bits_are_ids_like_any_other(tmp_path):
    rows = [{"user_id": 2**70, "item_id": 1}, {"user_id": 2, "item_id": 1}]
    frame = load_interactions(write(tmp_path / "log.jsonl", rows), LoadConfig())
    assert frame["user_id"].to_list() == [str(2**70), "2"]


@pytest.mark.parametrize(
    ("stated", "times", "told"),
    [
        ("s", [NOON * 1000], r"no sense as seconds \(such as 1400000000000\); as milliseconds it would be 2014-05-13"),
        ("s", [NOON * 10**9], "as nanoseconds it would be 2014-05-13"),
        ("s", ["2014-05-13"], "as ISO 8601 dates it would be 2014-05-13 00:00:00: set timestamp_unit = 'iso'"),
        ("ms", [NOON], "no sense as milliseconds .*as seconds it would be 2014-05-13 16:53:20: set .* = 's'"),
        ("iso", [NOON], "set timestamp_unit = 's'"),
        ("s", [NOON, "soon"], r"cannot be read as seconds in row 3 \(such as 'soon'\)"),
        ("s", [NOON, 0, NOON, -5], "as seconds lies outside 1970-01-02 … 2100-01-01 in rows 3, 5"),
        ("s", [NOON, None], "'timestamp' is null, with no 'position' column .* in row 3"),
    ],
)
def test_times_in_the_wrong_unit_are_told_with_the_right_one(folder, stated, times, told):
    rows = [{"user_id": "u", "item_id": "1", "timestamp": None if time is None else str(time)} for time in times]
    write(folder / "log.csv", rows)
    with pytest.raises(BadInput, match=told):
        load(folder, timestamp_unit=stated)


def test_a_time_column_by_another_name_is_not_silently_left_out(folder):
    text = "user_id,item_id,unixReviewTime\nu,1,1400000000\n"
    assert "'unixReviewTime' looks like one: use --map timestamp=unixReviewTime" in faults_of(folder, text)
    assert load(folder, timestamp_unit="none")[1].order == Order.FILE


def test_interactions_with_items_that_the_catalog_lacks_are_told_with_count_rows_and_ids(folder):
    told = faults_of(folder, [*LOG, {**LOG[0], "item_id": "x"}, {**LOG[1], "item_id": "x"}, {**LOG[1], "item_id": "y"}])
    assert "3 of 8 interactions are with 2 items that the catalog lacks ('x', 'y'), in rows 7, 8, 9" in told
    assert "unknown_items = 'drop'" in told


def test_nothing_left_is_told_with_what_was_dropped(folder):
    assert "none of the 5 interactions is left (exact_copies: 0, below_min_rating: 5)" in faults_of(
        folder, LOG, min_rating=9
    )


@pytest.mark.parametrize("empty", [None, "", "  \t"])
def test_an_item_without_text_is_told(folder, empty):
    items = [*ITEMS, {"item_id": "q", "title": empty, "genres": None}]
    assert "row 6: no text comes out of the template '{title} | {genres}'" in faults_of(folder, LOG, items)


def test_item_ids_that_stand_twice_are_told(folder):
    told = faults_of(folder, LOG, [*ITEMS, ITEMS[1], ITEMS[1]])
    assert "'item_id' repeats an earlier id in rows 6, 7 (such as '01')" in told


def test_a_template_with_a_column_that_is_not_there_is_told(folder):
    told = faults_of(folder, LOG, template="{titel} {year}")
    assert "names 'titel' and 'year', no column of the catalog; did you mean 'title'?" in told


@pytest.mark.parametrize("rating", ["good", "nan", "inf"])
def test_ratings_that_are_no_numbers_are_told(folder, rating):
    told = faults_of(folder, "user_id,item_id,timestamp,rating\nu,1,1400000000,4\nu,1,1400000000," + rating + "\n")
    assert f"'rating' is no number in row 3 (such as {rating!r})" in told


def test_a_least_rating_needs_ratings(folder):
    assert "min_rating = 3, but there is no column 'rating'" in faults_of(
        folder, [{"user_id": "u", "item_id": "1", "timestamp": NOON}], min_rating=3
    )
    assert "'rating' is null in row 2" in faults_of(folder, [{**LOG[0], "rating": None}, LOG[1]], min_rating=3)


@pytest.mark.parametrize(
    ("positions", "told"),
    [([0, 1.5, 2], "no whole number in row 3"), ([0, 1, None], "no whole number in row 4"), ([3, 4, 3], "in row 4")],
)
def test_positions_must_be_whole_and_distinct(folder, positions, told):
    rows = [{"user_id": "u", "item_id": "1", "position": place} for place in positions]
    assert told in faults_of(folder, rows)


def test_all_faults_of_all_files_come_in_one_error(folder):
    log = [{**LOG[0], "user_id": None}, {**LOG[1], "rating": "x"}, {**LOG[2], "timestamp": 5}]
    log = [{key: None if value is None else str(value) for key, value in row.items()} for row in log]
    told = faults_of(folder, log, [*ITEMS, ITEMS[0]], template="{nothing}")
    assert told.splitlines()[0].endswith("5 faults")
    for part in (
        "log.csv: 'user_id'",
        "log.csv: 'rating'",
        "log.csv: 'timestamp'",
        "items.csv: 'item_id'",
        "{nothing}",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("log.csv", b"user_id,item_id\nu,1,2,3\n", "cannot be read as csv: found more fields"),
        ("log.csv", b"user_id,item_id\n\xff\xfe,1\n", "cannot be read as csv: invalid utf-8"),
        ("log.parquet", b"PAR1 half a fi", "cannot be read as parquet"),
        ("log.jsonl", b'{"user_id": 1}\n{"user_id"\n', "row 2 is no JSON"),
        ("log.jsonl", b"[1, 2]\n", "row 1 is a list; expected one JSON object a line"),
        ("log.jsonl.gz", b"not gzip", "cannot be read as jsonl"),
        ("log.jsonl.gz", gzip.compress(b'{"user_id": 1}\n' * 5000)[:-20], "cannot be read as jsonl"),
        ("log.xlsx", b"", r"unknown kind of file; expected \.csv"),
    ],
)
def test_files_that_cannot_be_read_are_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=told):
        load_interactions(tmp_path / name, LoadConfig())


def test_a_file_that_is_not_there_and_a_folder_are_told(tmp_path):
    with pytest.raises(BadInput, match=r"log\.csv: there is no such file"):
        load_interactions(tmp_path / "log.csv", LoadConfig())
    with pytest.raises(BadInput, match="is a folder"):
        load_interactions(tmp_path, LoadConfig())


# ---- guesses ----


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        (
            ["userId", "movieId", "rating", "timestamp"],
            TableKind.LOG,
            {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "rating": "rating"},
        ),
        (
            ["reviewerID", "asin", "overall", "unixReviewTime", "reviewTime"],
            TableKind.LOG,
            {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime", "rating": "overall"},
        ),
        (
            ["user_id:token", "item_id:token", "timestamp:float"],
            TableKind.LOG,
            {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"},
        ),
        (["id", "Name"], TableKind.CATALOG, {"item_id": "id", "title": "Name"}),
        (["id", "age"], TableKind.USERS, {"user_id": "id"}),
        (["colour"], TableKind.LOG, {}),
    ],
)
def test_columns_are_guessed_by_their_names(columns, kind, expected):
    assert detect_columns(columns, kind) == expected


def test_the_item_id_that_both_files_have_is_preferred():
    mapping = detect_mapping(["user_id", "asin", "parent_asin", "timestamp"], ["parent_asin", "id", "title"])
    assert (mapping["log.item_id"], mapping["catalog.item_id"]) == ("parent_asin", "parent_asin")
    mapping = detect_mapping(["visitor", "movie"], ["id", "name"])
    assert mapping == {
        "log.user_id": "visitor",
        "log.item_id": "movie",
        "catalog.item_id": "id",
        "catalog.title": "name",
    }


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
