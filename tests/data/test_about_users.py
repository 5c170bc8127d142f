"""A users table becomes words that travel with the histories."""

import numpy as np
import polars as pl
import pytest

from data.load import LoadConfig, load_dataset
from data.prepared import dataset_fingerprint, load_prepared, save_prepared
from data.schema import Histories
from data.split import SplitConfig, make_split
from data.text import default_user_template
from store.errors import BadInput
from tests.data.files import ITEMS, LOG, write

USERS = [
    {"user_id": "u1", "age_group": "18-25", "job": "nurse", "name": "Ann"},
    {"user_id": "u2", "age_group": "18-25", "job": None, "name": "Bob"},
    {"user_id": "u3", "age_group": "18-25", "job": "nurse", "name": "Cy"},
    {"user_id": "u4", "age_group": "36-50", "job": "nurse", "name": "Di"},
    {"user_id": "u5", "age_group": "36-50", "job": "clerk", "name": "Ed"},
]


def loaded(folder, users=USERS, **options):
    paths = [write(folder / name, rows) for name, rows in (("log.csv", LOG), ("items.csv", ITEMS), ("who.csv", users))]
    return load_dataset(paths[0], paths[1], LoadConfig(**options), paths[2])[0]


def test_columns_that_users_share_are_told_by_name(tmp_path):
    log = loaded(tmp_path)
    assert list(log.users.ids) == ["u2", "u1"]
    assert log.interactions.about.tolist() == ["age group 18-25", "age group 18-25 | job nurse"]


def test_a_template_says_what_is_told(tmp_path):
    log = loaded(tmp_path, user_template="{name}, {job}")
    assert log.interactions.about.tolist() == ["Bob", "Ann, nurse"]


def test_a_template_of_columns_that_are_not_there_is_told(tmp_path):
    with pytest.raises(BadInput, match="names 'jb', no column of the users table; did you mean 'job'"):
        loaded(tmp_path, user_template="{jb}")


def test_users_that_the_table_lacks_have_no_words(tmp_path):
    assert loaded(tmp_path, USERS[1:]).interactions.about.tolist() == ["age group 18-25", ""]


def test_columns_of_ones_own_tell_nothing():
    users = pl.DataFrame({"user_id": range(100), "email": [f"{n}@x" for n in range(100)], "plan": ["a", "b"] * 50})
    assert default_user_template(users) == "plan {plan}"
    assert default_user_template(users.select("user_id", "email")) == ""


def test_words_go_with_their_lists():
    lists = Histories.of([[1, 2], [3], [4, 5, 6]], about=["a", "b", "c"])
    assert lists.take(np.array([2, 0])).about.tolist() == ["c", "a"]
    assert lists.without_last(1).about.tolist() == ["a", "b", "c"]
    assert Histories.joined([lists, lists.take(np.array([1]))]).about.tolist() == ["a", "b", "c", "b"]
    assert Histories.joined([lists, Histories.of([[1]])]).about is None
    assert [lists.about_of(1), Histories.of([[1]]).about_of(0)] == ["b", ""]


def test_a_split_asks_each_user_with_their_own_words(tmp_path):
    rows = [{"user_id": f"u{user}", "item_id": item, "timestamp": 10**9 + place} for user in (1, 5, 4)
            for place, item in enumerate(("1", "01", " b", "new"))]  # fmt: skip
    write(tmp_path / "log.csv", rows)
    who = write(tmp_path / "who.csv", USERS)
    dataset, _ = load_dataset(tmp_path / "log.csv", write(tmp_path / "items.csv", ITEMS), LoadConfig(), who)
    words = {
        "u1": "age group 18-25 | job nurse",
        "u5": "age group 36-50 | job clerk",
        "u4": "age group 36-50 | job nurse",
    }
    split = make_split(dataset, SplitConfig())
    for asked in (split.validation, split.test):
        ids = [dataset.users.ids[row] for row in asked.user_rows]
        assert asked.histories.about.tolist() == [words[user] for user in ids]


def test_they_are_kept_and_change_the_fingerprint(tmp_path):
    one, other = loaded(tmp_path), loaded(tmp_path, USERS[1:])
    assert dataset_fingerprint(one) != dataset_fingerprint(other)
    (tmp_path / "kept").mkdir()
    save_prepared(tmp_path / "kept", one, report={}, made_from={})
    kept, _ = load_prepared(tmp_path / "kept")
    assert kept.interactions.about.tolist() == one.interactions.about.tolist()
    assert dataset_fingerprint(kept) == dataset_fingerprint(one)
