import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM
from retrieval.encode import EncoderConfig, centred
from retrieval.history_reader import HistoryReader
from store.errors import Mismatch
from tests.retrieval.bag_encoder import WIDTH, BagEncoder, bag_reader, vectors_of

TEXTS = [f"red kind{row % 3} name{row}" for row in range(12)]
MEAN = vectors_of(TEXTS).mean(axis=0)
LISTS = st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=1, max_size=6)


def padded(lists: list[list[int]], width: int = 4) -> np.ndarray:
    return np.array([rows + [NO_ITEM] * (width - len(rows)) for rows in lists], dtype=np.int64)


def by_hand(newest_first: list[int]) -> np.ndarray:
    """The texts joined, most recent first, encoded, centred, and rounded."""
    if not newest_first:
        return np.zeros(WIDTH, dtype=np.float32)
    text = "; ".join(TEXTS[row] for row in newest_first)
    return centred(vectors_of([text]), MEAN).astype(np.float16).astype(np.float32)[0]


@given(LISTS)
@settings(max_examples=30, deadline=None)
def test_a_history_is_its_texts_most_recent_first(lists):
    found = bag_reader(TEXTS).vectors(padded(lists))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [by_hand(rows) for rows in lists], atol=1e-3)


def test_only_as_much_is_read_as_the_encoder_takes():
    short = BagEncoder(max_words=3)  # one item
    reader = bag_reader(TEXTS, encoder=short)
    one, two = reader.vectors(padded([[5], [5, 2]]))
    np.testing.assert_array_equal(one, two)


def test_what_was_read_is_remembered_whatever_its_padding_and_equals_what_is_read_anew():
    encoder = BagEncoder()
    reader = bag_reader(TEXTS, encoder=encoder)
    lists = [[1, 2], [3], [], [1, 2]]
    first = reader.vectors(padded(lists))
    read = encoder.read
    assert read == 1 + 2  # a look at the catalog, and two different histories
    again = reader.vectors(padded(lists[::-1], width=9))[::-1]
    assert encoder.read == read
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, bag_reader(TEXTS).vectors(padded(lists)))


def test_memory_is_bounded_and_the_oldest_goes_first():
    encoder = BagEncoder()
    reader = bag_reader(TEXTS, encoder=encoder, remembered=3)
    many = padded([[row] for row in range(12)])
    found = reader.vectors(many)
    np.testing.assert_allclose(found, [by_hand([row]) for row in range(12)], atol=1e-3)
    read = encoder.read
    reader.vectors(padded([[9], [10], [11]]))
    assert encoder.read == read
    reader.vectors(padded([[9], [0]]))
    assert encoder.read == read + 1
    reader.vectors(padded([[9]]))
    assert encoder.read == read + 1


def test_nothing_is_loaded_for_empty_histories():
    def never(_: EncoderConfig) -> None:
        raise AssertionError("there is nothing to read")

    reader = HistoryReader(TEXTS, vectors_of(TEXTS), load_encoder=never, config=EncoderConfig())
    assert not reader.vectors(padded([[], []])).any()
    assert reader.vectors(np.zeros((0, 4), dtype=np.int64)).shape == (0, WIDTH)


def test_what_is_known_of_the_user_is_read_before_the_history_and_remembered_with_it():
    encoder = BagEncoder()
    reader = bag_reader(TEXTS, encoder=encoder)
    rows = padded([[5, 2], [5, 2], [5, 2], []])
    found = reader.vectors(rows, ["old hand", "newcomer", "", "newcomer"])
    words = ["old hand; red kind2 name5; red kind2 name2", "newcomer; red kind2 name5; red kind2 name2"]
    np.testing.assert_allclose(found[:2], centred(vectors_of(words), MEAN), atol=1e-3)
    np.testing.assert_allclose(found[2], by_hand([5, 2]), atol=1e-3)
    assert not found[3].any()
    read = encoder.read
    np.testing.assert_array_equal(reader.vectors(rows[:3], ["newcomer", "old hand", ""]), found[[1, 0, 2]])
    assert encoder.read == read
    first = bag_reader(TEXTS, encoder=BagEncoder(max_words=3))  # the history is cut, not what is known
    one, two = first.vectors(padded([[5], [3]]), ["a very old hand"] * 2)
    np.testing.assert_array_equal(one, two)


def test_another_encoder_than_the_catalogs_is_refused():
    other = bag_reader(TEXTS, encoder=BagEncoder(salt="x"))
    with pytest.raises(Mismatch, match=r"'minilm-l6' reads 'red kind0 name0' otherwise.*train-retriever"):
        other.vectors(padded([[1]]))


def test_over_a_changed_catalog_new_and_retold_items_are_read_in_their_new_words():
    reader, rows = bag_reader(TEXTS), padded([[0, 1], [5, 0]])
    before = reader.vectors(rows)
    more = reader.over({1: "blue kind7 other", 12: "red kind1 late"}, n_items=13)
    words = ["blue kind7 other; red kind0 name0", "red kind1 late; red kind0 name0", "red kind2 name5; red kind0 name0"]
    expected = centred(vectors_of(words), MEAN)
    np.testing.assert_allclose(more.vectors(padded([[1, 0], [12, 0], [5, 0]])), expected, atol=1e-3)
    np.testing.assert_array_equal(reader.vectors(rows), before)
