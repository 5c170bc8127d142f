import numpy as np
import scipy.sparse as sp

from retrieval.encode import centred
from retrieval.likeness import Likeness
from retrieval.words import Words
from tests.retrieval.toy import item_texts, text_vectors

N = 30
ALIKE = Likeness(centred(text_vectors(N)), Words.of(item_texts(N)))
EVERY = np.arange(N)


def test_an_item_is_wholly_like_itself_and_no_more_than_that_like_others():
    found = ALIKE.between(EVERY, EVERY)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-6).all()


def test_words_in_common_count_twice_and_opposite_meanings_not_below_nothing():
    text = np.array([[1, 0], [-1, 0], [0.6, 0.8]], dtype=np.float32)
    found = Likeness(text, Words.of(["red shoe", "red shoe", "blue hat"])).between(np.array([0]), np.arange(3))
    np.testing.assert_allclose(found, [[1, 2 / 3, 0.6 / 3]], rtol=1e-5)


def test_recent_items_add_up_by_their_weights_the_close_ones_most():
    recent = np.zeros((3, N), dtype=np.float32)
    recent[0, [4, 9]], recent[2, 7] = [1, 0.5], 2
    rows = np.array([[1, 4, 20], [0, 1, 2], [7, 8, 9]])
    found = ALIKE.to_recent(sp.csr_matrix(recent), rows)
    dense = ALIKE.between(EVERY, EVERY).astype(np.float64) ** 3
    for user in range(3):
        np.testing.assert_allclose(found[user], dense[rows[user]] @ recent[user], rtol=1e-4, atol=1e-7)
    assert not found[1].any()
