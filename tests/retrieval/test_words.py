import numpy as np
import pytest

from retrieval import words as module
from retrieval.words import FEATURES, Words

TEXTS = [
    "The Hobbit | J. R. R. Tolkien | fantasy, classics",
    "The Silmarillion | J. R. R. Tolkien | fantasy",
    "Emma | Jane Austen | classics, romance",
    "Persuasion | Jane Austen | romance",
    "Persuasion",
    "42",
]


@pytest.fixture(scope="module")
def words() -> Words:
    return Words.of(TEXTS)


def test_rows_have_length_1_or_nothing_that_another_text_has(words):
    assert words.vectors.dtype == np.float32
    lengths = np.linalg.norm(words.vectors.toarray(), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 1, 0], rtol=1e-5)


def test_texts_by_the_same_author_are_most_alike(words):
    likeness = (words.vectors @ words.vectors.T).toarray()
    np.fill_diagonal(likeness, -1)
    assert likeness[:4].argmax(axis=1).tolist() == [1, 0, 3, 2]


def test_what_all_texts_have_and_what_one_alone_has_weighs_nothing():
    found = Words.of(["common rare", "common rare", "common lone", "common single"])
    assert (found.vectors.getnnz(axis=1) > 0).tolist() == [True, True, False, False]


def test_weights_by_hand():
    found = Words.of(["red shoe", "red hat", "blue shoe", "green sock", "green sock"])
    # Of five texts, "red" and "shoe" stand in two each; no pair or part of the first stands in another.
    np.testing.assert_allclose(found.vectors[0].data, [0.5**0.5, 0.5**0.5], rtol=1e-6)
    # "green", "sock", their pair and their part, twice each.
    np.testing.assert_allclose(found.vectors[3].data, [0.5] * 4, rtol=1e-6)
    assert sorted(set(found.idf.tolist())) == pytest.approx([0, np.log(6 / 3) ** 1.5])


@pytest.mark.parametrize("few", [0, 256], ids=["sparse", "dense"])
def test_cosines_are_the_products_of_the_rows(words, few, monkeypatch):
    monkeypatch.setattr(module, "FEW", few)
    dense = words.vectors.toarray()
    for some, others in (([0, 1, 2, 3, 4, 5], [3, 0]), ([5], [5]), ([2, 2], [4]), ([0], [])):
        rows, columns = np.array(some, dtype=np.int64), np.array(others, dtype=np.int64)
        found = words.cosines(rows, columns)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, dense[rows] @ dense[columns].T, rtol=1e-5, atol=1e-7)


def test_a_new_text_is_read_as_one_of_the_catalog(words):
    assert (words.read(TEXTS) != words.vectors).nnz == 0
    new = words.read(["Sanditon | Jane Austen"])
    assert (new @ words.vectors.T).toarray()[0].argmax() in (2, 3)


def test_saved_and_loaded_it_is_the_same(words, tmp_path):
    words.save(tmp_path)
    loaded = Words.load(tmp_path)
    assert loaded.vectors.shape == (len(TEXTS), FEATURES)
    assert (loaded.vectors != words.vectors).nnz == 0
    np.testing.assert_array_equal(loaded.idf, words.idf)
