"""A retriever that grew equals one that knew the whole catalog from the beginning, and never shows what is gone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.schema import NO_ITEM, Candidates, Histories
from index.changes import Change, ChangeKind
from index.faiss_index import FlatIndex
from index.live import LiveIndex
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.growth import ReadItems, grown, taken_in_training
from retrieval.likeness import Likeness
from retrieval.retriever import POPULARITY, Retriever
from retrieval.stand_ins import find_stand_ins
from retrieval.topics import Topics, beside
from retrieval.transitions import Transitions
from retrieval.trend import Trend
from retrieval.words import Words
from tests.retrieval.toy import TOPICS, item_texts, random_log
from tests.retrieval.toy import retriever as toy_retriever

ITEMS, KNOWN = 40, 33
NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def whole() -> Retriever:
    """Over all items, of which those from KNOWN on, and some before, were never taken, nor had their words a say."""
    log = random_log(KNOWN - 3, users=80)
    made = toy_retriever(ITEMS, train=log, topics=TOPICS)
    words = _cut_words(made.words)
    topics = Topics.of(words, TOPICS)
    for member in made.towers.members:
        member.towers.text = torch.from_numpy(beside(made.text, topics.read(made.words.vectors)))
    taken = np.bincount(log.item_rows, minlength=ITEMS)
    stand_ins = find_stand_ins(Likeness(made.text, made.words), taken)
    for member in made.towers.members:
        member.towers.settle_cold_items(taken, stand_ins)
    vectors = made.towers.item_vectors()
    popular = np.bincount(log.item_rows, minlength=ITEMS).astype(np.float32)
    return replace(made, topics=topics, item_vectors=vectors, index=FlatIndex(vectors), recent_popularity=popular)


def cut(whole: Retriever) -> Retriever:
    """What would have been fitted on a catalog without the last items."""
    weights, stand_ins = whole.transitions.weights, whole.transitions.stand_ins
    vectors = whole.item_vectors[:KNOWN]
    return replace(
        whole,
        towers=TowerEnsemble(tuple(_cut(member) for member in whole.towers.members), whole.towers.weights),
        transitions=Transitions(weights[:KNOWN, :KNOWN], whole.transitions.config, stand_ins[:KNOWN, :KNOWN]),
        item_vectors=vectors,
        text=whole.text[:KNOWN],
        words=_cut_words(whole.words),
        trend=replace(whole.trend, ever=whole.trend.ever[:KNOWN]),
        recent_popularity=whole.recent_popularity[:KNOWN],
        index=FlatIndex(vectors),
    )


def _cut_words(words: Words) -> Words:
    return replace(words, vectors=words.vectors[:KNOWN])


def _cut(member: Member) -> Member:
    towers = copy.deepcopy(member.towers)
    towers.text = towers.text[:KNOWN]
    for tower in (towers.item, towers.user):
        for name in ("residual", "bias"):
            if isinstance(getattr(tower, name, None), torch.nn.Parameter):
                setattr(tower, name, torch.nn.Parameter(getattr(tower, name)[:KNOWN].clone()))
    return replace(member, towers=towers)


def read_again(before: Retriever, whole: Retriever, rows: np.ndarray) -> ReadItems:
    texts = item_texts(ITEMS)
    return ReadItems.of(before, rows, [texts[row] for row in rows], whole.text[rows])


def grow(before: Retriever, whole: Retriever, *, removed: np.ndarray = NOTHING) -> Retriever:
    read = read_again(before, whole, np.arange(KNOWN, ITEMS))
    index = LiveIndex(before.index)
    grew = grown(before, read, n_items=ITEMS, removed=removed, index=index)
    index.apply([Change(ChangeKind.PUT, read.rows, grew.item_vectors[read.rows])])
    index.apply([Change(ChangeKind.REMOVE, removed)])
    return grew


def histories() -> Histories:
    rng = np.random.default_rng(3)
    lists = [rng.choice(ITEMS, rng.integers(1, 8), replace=False).tolist() for _ in range(30)]
    return Histories.of([*lists, [], [ITEMS - 1], [KNOWN]])


def same(found: Candidates, expected: Candidates) -> None:
    """The same items with the same scores; places of a tie are the rounding's."""
    np.testing.assert_allclose(found.score, expected.score, atol=1e-5)
    assert set(found.sources) == set(expected.sources)
    for name in expected.sources:
        columns = [by_row(made, made.sources[name]) for made in (found, expected)]
        np.testing.assert_allclose(*columns, atol=1e-4, err_msg=name)


def by_row(candidates: Candidates, scores: np.ndarray) -> np.ndarray:
    """(B, N) of (B, K); NaN for items that are no candidates."""
    table = np.full((len(candidates), ITEMS), np.nan)
    lists, places = np.nonzero(candidates.present)
    table[lists, candidates.item_rows[lists, places]] = scores[lists, places]
    return table


def test_training_counts_come_back_from_the_trend() -> None:
    log = random_log(20, users=3000)
    counts = np.bincount(log.item_rows, minlength=22)
    np.testing.assert_array_equal(taken_in_training(Trend.fit(log, 22, ())), counts)


def test_what_grew_equals_what_knew_all_items_from_the_beginning(whole: Retriever) -> None:
    grew = grow(cut(whole), whole)
    np.testing.assert_allclose(grew.item_vectors, whole.item_vectors, atol=1e-6)
    found, expected = (made.transitions.stand_ins.toarray() for made in (grew, whole))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    asked = histories()
    same(grew.candidates(asked, ITEMS), whole.candidates(asked, ITEMS))
    same(grew.search(asked, ITEMS), whole.search(asked, ITEMS))
    queries = whole.text[[KNOWN + 1, 2]]
    nobody = Histories.of([[], []])
    same(grew.candidates_for_texts(queries, nobody, ITEMS), whole.candidates_for_texts(queries, nobody, ITEMS))


def test_the_retriever_that_grew_is_left_as_it_was(whole: Retriever) -> None:
    before = cut(whole)
    asked = Histories.of([[1, 5, 9], [0], []])
    answer = before.candidates(asked, ITEMS)
    grow(before, whole, removed=np.array([5]))
    same(before.candidates(asked, ITEMS), answer)


def test_another_text_changes_what_text_says_and_leaves_what_training_taught(whole: Retriever) -> None:
    warm = int(np.flatnonzero(taken_in_training(whole.trend))[0])
    twin = KNOWN + 2
    read = ReadItems.of(whole, np.array([warm]), [item_texts(ITEMS)[twin]], whole.text[[twin]])
    assert (read.stand_in_rows == NO_ITEM).all()  # it has a past and speaks for itself
    grew = grown(whole, read, n_items=ITEMS, removed=NOTHING, index=whole.index)
    likeness = Likeness(grew.text, grew.words).between(np.array([warm]), np.array([twin]))
    assert likeness[0, 0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(grew.transitions.weights.toarray(), whole.transitions.weights.toarray())
    before, after = (made.towers.members[0].towers.item.residual[warm] for made in (whole, grew))
    np.testing.assert_array_equal(before.detach(), after.detach())
    assert not np.allclose(grew.item_vectors[warm], whole.item_vectors[warm])
    others = np.delete(np.arange(ITEMS), warm)
    np.testing.assert_allclose(grew.item_vectors[others], whole.item_vectors[others], atol=1e-6)


def test_a_removed_item_is_no_candidate_of_any_source(whole: Retriever) -> None:
    before = cut(whole)
    popular = int(np.argmax(whole.recent_popularity))
    removed = np.array(sorted({popular, 2, 7, KNOWN - 1, KNOWN + 1}))
    grew = grow(before, whole, removed=removed)
    asked = histories()
    for exclude_known in (True, False):
        found = grew.candidates(asked, ITEMS, exclude_known=exclude_known)
        assert POPULARITY in found.sources
        assert not np.isin(found.item_rows, removed).any()
        assert not np.isin(grew.search(asked, ITEMS, exclude_known=exclude_known).item_rows, removed).any()
    wished = grew.candidates_for_texts(whole.text[removed], Histories.of([[]] * len(removed)), ITEMS)
    assert not np.isin(wished.item_rows, removed).any()
    assert (np.sort(wished.item_rows[0][wished.present[0]]) == np.setdiff1d(np.arange(ITEMS), removed)).all()


def test_removals_alone_read_nothing(whole: Retriever) -> None:
    nothing = ReadItems.of(whole, NOTHING, [], whole.text[NOTHING])
    index = LiveIndex(whole.index)
    index.apply([Change(ChangeKind.REMOVE, np.array([4]))])
    grew = grown(whole, nothing, n_items=ITEMS, removed=np.array([4]), index=index)
    np.testing.assert_allclose(grew.item_vectors, whole.item_vectors, atol=1e-6)
    assert not (grew.candidates(histories(), ITEMS).item_rows == 4).any()


def test_a_removed_item_still_speaks_in_a_history(whole: Retriever) -> None:
    grew, kept = grow(cut(whole), whole, removed=np.array([2])), grow(cut(whole), whole)
    asked, rows = Histories.of([[2]]), np.array([1, 3, 4, KNOWN])
    np.testing.assert_allclose(grew.weighted_sums(asked, rows), kept.weighted_sums(asked, rows), atol=1e-6)
