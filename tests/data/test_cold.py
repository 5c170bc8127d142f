"""Items drawn by the hash of their id, against digests taken by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cold import ColdItems, rows_by_hash
from data.vocabulary import Vocabulary
from store.errors import BadInput

# SHA-256 of each digit begins with 5feceb66 6b86b273 d4735e3a 4e074085 4b227777 ef2d127d e7f6c011 7902699b
# 2c624232 19581e27, so that by rising hash they come in this order:
BY_HASH = "9843017265"


def test_rows_go_by_the_hash_of_the_id():
    assert rows_by_hash(Vocabulary("0123456789")).tolist() == [int(name) for name in BY_HASH]


def test_the_smallest_hashes_are_the_test_and_the_next_are_validation():
    cold = ColdItems.drawn(Vocabulary("0123456789"), test=3, validation=2)
    assert cold.asked("test").tolist() == [4, 8, 9]
    assert cold.asked("validation").tolist() == [0, 3]
    assert cold.warm.tolist() == [row not in (0, 3, 4, 8, 9) for row in range(10)]


@given(st.permutations("0123456789"), st.integers(1, 5), st.integers(1, 4))
def test_membership_depends_on_the_id_alone(names, test, validation):
    cold = ColdItems.drawn(Vocabulary(names), test=test, validation=validation)
    assert {names[row] for row in cold.asked("test")} == set(BY_HASH[:test])
    assert {names[row] for row in cold.asked("validation")} == set(BY_HASH[test : test + validation])


@given(st.sets(st.text(max_size=3), min_size=4, max_size=30), st.integers(1, 3))
def test_the_parts_are_disjoint_and_of_the_size_asked(names, test):
    cold = ColdItems.drawn(Vocabulary(sorted(names)), test=test, validation=len(names) - test - 1)
    assert (cold.test.sum(), cold.validation.sum(), cold.warm.sum()) == (test, len(names) - test - 1, 1)
    assert not (cold.test & cold.validation).any()


def test_as_many_cold_items_as_there_are_items_are_refused():
    with pytest.raises(BadInput, match=r"8 items for the test and 2 for validation.*catalog of 10.*split.cold_items"):
        ColdItems.drawn(Vocabulary("0123456789"), test=8, validation=2)
