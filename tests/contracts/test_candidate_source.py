"""What every CandidateSource must do; each baseline stands in SOURCES."""

from collections.abc import Callable

import numpy as np
import pytest

from baselines.ease import Ease, EaseConfig
from baselines.ials import IalsConfig, ImplicitAls
from baselines.item_knn import ItemKnn, ItemKnnConfig
from baselines.popularity import Popularity, RecentPopularity
from baselines.sasrec import SasRec
from baselines.transitions_text import TransitionsText, TransitionsTextConfig
from data.schema import NO_ITEM, Histories, Holdout
from retrieval.base import CandidateSource
from retrieval.towers import SequenceConfig
from retrieval.train import TrainConfig

N = 30


def transitions_text(train: Histories) -> CandidateSource:
    vectors = np.random.default_rng(5).standard_normal((N, 6)).astype(np.float32)
    return TransitionsText.fit(train, N, TransitionsTextConfig(), text_vectors=vectors)


def sasrec(train: Histories) -> CandidateSource:
    users = np.zeros(0, dtype=np.int64)
    nobody = Holdout("validation", users, train.take(users), train.take(users))
    small = SequenceConfig(text_dim=0, residual_dim=8, layers=1, epochs=30, batch_size=64, learning_rate=0.02)
    return SasRec.fit(train, N, small, validation=nobody, training=TrainConfig(), log=lambda entry: None)


SOURCES: dict[str, Callable[[Histories], CandidateSource]] = {
    "popularity": lambda train: Popularity.fit(train, N),
    "recent popularity": lambda train: RecentPopularity.fit(train, N, days=2),
    "item-knn": lambda train: ItemKnn.fit(train, N, ItemKnnConfig()),
    "ease": lambda train: Ease.fit(train, N, EaseConfig(l2=2)),
    "ials": lambda train: ImplicitAls.fit(train, N, IalsConfig(factors=4, iterations=3), seed=1),
    "transitions + text": transitions_text,
    "sasrec": sasrec,
}
ASKED = [[0, 1, 2], [], [7], list(range(25)), [3, 3, 9], list(range(N))]


def log() -> Histories:
    """Planted: of two halves of the catalog, each user stays in one; items 28 and 29 are never taken."""
    rng = np.random.default_rng(4)
    lists = [(rng.integers(0, 14, rng.integers(0, 9)) + 14 * (user % 2)).tolist() for user in range(60)]
    plain = Histories.of(lists)
    days = rng.integers(0, 5, len(plain.item_rows)) * 86_400
    return Histories(plain.item_rows, plain.offsets, days.astype(np.int64))


@pytest.fixture(scope="module", params=list(SOURCES))
def source(request: pytest.FixtureRequest) -> CandidateSource:
    found = SOURCES[request.param](log())
    assert found.name == request.param
    return found


@pytest.mark.parametrize("depth", [1, 7, N, N + 5])
@pytest.mark.parametrize("exclude_known", [True, False])
def test_lists_hold_as_many_different_items_as_exist(source: CandidateSource, depth: int, exclude_known: bool) -> None:
    found = source.candidates(Histories.of(ASKED), depth, exclude_known=exclude_known)
    assert found.item_rows.shape == found.score.shape == (len(ASKED), depth)
    assert found.item_rows.dtype == np.int64
    assert found.score.dtype == np.float32
    for history, rows, present in zip(ASKED, found.item_rows, found.present, strict=True):
        allowed = set(range(N)) - (set(history) if exclude_known else set())
        count = min(depth, len(allowed))
        assert present[:count].all()
        assert not present[count:].any()
        assert len(set(rows[:count])) == count
        assert set(rows[:count]) <= allowed


def test_scores_fall_and_stand_under_the_name_of_the_source(source: CandidateSource) -> None:
    found = source.candidates(Histories.of(ASKED), N)
    assert list(found.sources) == [source.name]
    np.testing.assert_array_equal(found.sources[source.name], found.score)
    assert (found.score[:, :-1] >= found.score[:, 1:]).all()
    assert np.isfinite(found.score[found.present]).all()
    assert (found.score[~found.present] == -np.inf).all()


def test_known_items_are_left_out_and_nothing_else_changes(source: CandidateSource) -> None:
    everything = source.candidates(Histories.of(ASKED), N, exclude_known=False)
    found = source.candidates(Histories.of(ASKED), N)
    for user, history in enumerate(ASKED):
        expected = [row for row in everything.item_rows[user] if row not in history]
        assert found.item_rows[user][: len(expected)].tolist() == expected


def test_a_shorter_list_is_the_head_of_a_longer_one(source: CandidateSource) -> None:
    long, short = (source.candidates(Histories.of(ASKED), depth) for depth in (N, 4))
    np.testing.assert_array_equal(short.item_rows, long.item_rows[:, :4])


def test_a_user_gets_the_same_alone_as_among_others(source: CandidateSource) -> None:
    together = source.candidates(Histories.of(ASKED), 8)
    for user, history in enumerate(ASKED):
        alone = source.candidates(Histories.of([history]), 8)
        np.testing.assert_allclose(alone.score[0], together.score[user], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(alone.item_rows[0] == NO_ITEM, together.item_rows[user] == NO_ITEM)


def test_no_history_gets_the_same_as_the_order_of_popularity_or_lately(source: CandidateSource) -> None:
    found = source.candidates(Histories.of([[]]), 5)
    taken = np.bincount(log().item_rows, minlength=N)
    if source.name == "recent popularity":
        taken = np.bincount(log().item_rows[log().timestamps > 2 * 86_400], minlength=N)
    np.testing.assert_array_equal(np.sort(taken[found.item_rows[0]]), np.sort(taken)[-5:])


def test_nobody_to_ask_gives_no_lists(source: CandidateSource) -> None:
    found = source.candidates(Histories.of([]), 3)
    assert found.item_rows.shape == (0, 3)


def test_fitting_again_gives_the_same_lists(source: CandidateSource) -> None:
    again = SOURCES[source.name](log()).candidates(Histories.of(ASKED), N)
    found = source.candidates(Histories.of(ASKED), N)
    np.testing.assert_array_equal(again.item_rows, found.item_rows)
    np.testing.assert_array_equal(again.score, found.score)


def test_personal_sources_find_the_planted_half(source: CandidateSource) -> None:
    if "popularity" in source.name:
        pytest.skip("gives everyone the same list")
    found = source.candidates(Histories.of([[0, 3, 5, 8], [15, 18, 20, 22]]), 5)
    lower, upper = found.item_rows
    assert (lower < 14).sum() >= 4
    assert ((upper >= 14) & (upper < 28)).sum() >= 4
