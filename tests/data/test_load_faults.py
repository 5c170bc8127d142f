"""Loading: every fault told at once, with its rows."""

import gzip

import pytest

from data.assemble import Order
from data.load import LoadConfig, load_interactions
from store.errors import BadInput
from tests.data.files import ITEMS, LOG, NOON, faults_of, load, write


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
        ("s", ["2014-05-13"], "as ISO 8601 dates it would be 2014-05-13 00:00:00: use --set data.timestamp_unit=iso"),
        (
            "ms",
            [NOON],
            "no sense as milliseconds .*as seconds it would be 2014-05-13 16:53:20: use --set data.timestamp_unit=s",
        ),
        ("iso", [NOON], "use --set data.timestamp_unit=s"),
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
    rows = [{"user_id": "u", "item_id": row["item_id"], "order_date": row["timestamp"]} for row in LOG]
    assert "'order_date' looks like one: use --map timestamp=order_date" in faults_of(folder, rows)
    told = faults_of(folder, [{**row, "click_ts": row["order_date"] + 9} for row in rows])
    assert "'order_date' and 'click_ts' look like one" in told
    write(folder / "log.csv", [{**row, "order_date": row["item_id"]} for row in rows])
    assert load(folder)[1].order == Order.FILE


def test_interactions_with_items_that_the_catalog_lacks_are_told_with_count_rows_and_ids(folder):
    told = faults_of(folder, [*LOG, {**LOG[0], "item_id": "x"}, {**LOG[1], "item_id": "x"}, {**LOG[1], "item_id": "y"}])
    assert "3 of 8 interactions are with 2 items that the catalog lacks ('x', 'y'), in rows 7, 8, 9" in told
    assert "--set data.unknown_items=drop" in told


def test_nothing_left_is_told_with_what_was_dropped(folder):
    assert "none of the 5 interactions is left (exact_copies: 0, below_min_rating: 5)" in faults_of(
        folder, LOG, min_rating=9
    )


@pytest.mark.parametrize("empty", [None, "", "  \t"])
def test_an_item_without_text_is_told(folder, empty):
    items = [*ITEMS, {"item_id": "q", "title": empty, "genres": None}]
    assert "row 6: no text comes out of the template '{title} | {genres}'" in faults_of(folder, LOG, items)


def test_a_catalog_without_words_is_told_what_could_be_a_title(folder):
    items = [{"article": row["item_id"], "maker": "Acme"} for row in ITEMS]
    told = faults_of(folder, LOG, items, columns={"catalog.item_id": "article"})
    assert "beside the ids in 'article' there are 'maker': " in told
    assert "--map title=maker" in told


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


def test_items_that_the_catalog_lacks_are_told_even_where_users_are_missing(folder):
    told = faults_of(folder, [{"user_id": "u", "item_id": "zzz", "timestamp": NOON}, {**LOG[0], "user_id": None}])
    assert "'user_id' is null or empty in row 3" in told
    assert "1 of 2 interactions are with 1 items that the catalog lacks ('zzz'), in row 2" in told


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
        ("log.csv", b"user_id,item_id\nu,1,2,3\n", r"log.csv: row 2 \('u,1,2,3'\) has 4 fields, but the header has 2"),
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
