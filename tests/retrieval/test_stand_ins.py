import numpy as np
import pytest

from retrieval.encode import centred
from retrieval.likeness import Likeness
from retrieval.stand_ins import STAND_INS, find_stand_ins, load_stand_ins, save_stand_ins
from retrieval.words import Words
from tests.retrieval.toy import item_texts, text_vectors

N = 50
TEXT = centred(text_vectors(N))
WORDS = Words.of(item_texts(N))
ALIKE = Likeness(TEXT, WORDS)


def counts(*cold: int) -> np.ndarray:
    taken = np.full(N, 3)
    taken[list(cold)] = 0
    return taken


def test_only_items_without_a_past_have_stand_ins_and_only_others_are_some():
    found = find_stand_ins(ALIKE, counts(4, 17, 30)).toarray()
    assert np.flatnonzero(found.any(axis=1)).tolist() == [4, 17, 30]
    assert not found[:, [4, 17, 30]].any()
    np.testing.assert_allclose(found[[4, 17, 30]].sum(axis=1), 1, rtol=1e-5)
    assert ((found > 0).sum(axis=1) <= STAND_INS).all()


def test_the_nearest_by_text_and_words_weigh_most():
    found = find_stand_ins(ALIKE, counts(4)).toarray()[4]
    likeness = np.maximum(TEXT @ TEXT[4], 0) + 2 * (WORDS.vectors @ WORDS.vectors[4].T).toarray()[:, 0]
    likeness[4] = -np.inf
    cubes = np.sort(likeness)[-STAND_INS:] ** 3
    np.testing.assert_allclose(
        np.sort(found)[-STAND_INS:], cubes / cubes.sum(), rtol=1e-4
    )  # whichever of those that tie
    assert found.argmax() == likeness.argmax()


def test_an_item_like_no_other_has_none():
    away = np.zeros((3, 2), dtype=np.float32)
    away[0], away[1:] = [1, 0], [-1, 0]
    assert find_stand_ins(Likeness(away, Words.of(["a", "b", "c"])), np.array([0, 1, 1])).nnz == 0


@pytest.mark.parametrize("taken", [np.zeros(N, dtype=np.int64), np.ones(N, dtype=np.int64)], ids=["all cold", "none"])
def test_without_both_cold_and_warm_items_there_are_none(taken):
    assert find_stand_ins(ALIKE, taken).nnz == 0


def test_few_warm_items_are_all_there_is():
    found = find_stand_ins(ALIKE, np.where(np.arange(N) < 2, 1, 0))
    assert set(found.indices.tolist()) <= {0, 1}


def test_saved_and_loaded_they_are_the_same(tmp_path):
    found = find_stand_ins(ALIKE, counts(4, 17))
    save_stand_ins(tmp_path, found)
    assert (load_stand_ins(tmp_path, N) != found).nnz == 0
