"""Settings are chosen on validation, and what is not fitted says why."""

from dataclasses import replace

import numpy as np
import pytest

from baselines.base import Skipped
from baselines.item_knn import ItemKnn, ItemKnnConfig
from baselines.lineup import BaselineKind, BaselinesConfig, fit_all, validation_ndcg
from baselines.popularity import RecentPopularity
from baselines.transitions_text import TransitionsText
from data.schema import Histories, Holdout

N = 40
SMALL = {"ials_factors": (4,), "ials_alpha": (5.0,), "ease_l2": (5.0,)}


def holdout(histories: list[list[int]], targets: list[list[int]]) -> Holdout:
    rows = np.arange(len(histories), dtype=np.int64)
    return Holdout("validation", rows, Histories.of(histories), Histories.of(targets))


@pytest.fixture
def train() -> Histories:
    rng = np.random.default_rng(0)
    return Histories.of([rng.integers(0, N, rng.integers(1, 9)).tolist() for _ in range(50)])


@pytest.fixture
def validation() -> Holdout:
    """What comes next is the neighbour by number."""
    return holdout([[row] for row in range(0, N, 2)], [[row + 1] for row in range(0, N, 2)])


def fitted(train, validation, vectors=None, again=None, **config):
    lines: list[str] = []
    settings = BaselinesConfig(**{**SMALL, **config})
    found = fit_all(train, validation, N, text_vectors=vectors, config=settings, again=again, log=lines.append)
    return found, lines


def test_every_kind_is_fitted_in_order(train: Histories, validation: Holdout) -> None:
    sources, lines = fitted(train, validation, np.eye(N, dtype=np.float32))
    names = [source.name for source in sources]
    assert names == ["popularity", "recent popularity", "item-knn", "ease", "ials", "transitions + text"]
    assert [line.split(":")[0] for line in lines] == names
    assert all("validation NDCG@10" in line for line in lines)


def test_text_weighs_where_it_tells_and_not_where_it_misleads(train: Histories, validation: Holdout) -> None:
    telling = np.repeat(np.eye(N // 2), 2, axis=0).astype(np.float32)  # a pair of neighbours shares its text
    (source,), _ = fitted(train, validation, telling, kinds=(BaselineKind.TRANSITIONS_TEXT,))
    assert isinstance(source, TransitionsText)
    assert source.config.text_weight > 0
    assert validation_ndcg(source, validation) > 0.9

    # The log tells of every pair; the texts pair every item with a wrong one.
    pairs = Histories.of([[row, row + 1] for row in range(0, N, 2)])
    misleading = np.roll(telling, 1, axis=0)
    (source,), _ = fitted(pairs, validation, misleading, kinds=(BaselineKind.TRANSITIONS_TEXT,))
    assert isinstance(source, TransitionsText)
    assert source.config.text_weight == 0


def test_the_setting_of_highest_validation_ndcg_is_taken(train: Histories, validation: Holdout) -> None:
    grid = {"knn_history_decay": (0.3, 1.0), "knn_shrinkage": (0.0, 4.0)}
    (source,), (line,) = fitted(train, validation, kinds=(BaselineKind.ITEM_KNN,), **grid)
    reached = [
        validation_ndcg(ItemKnn.fit(train, N, ItemKnnConfig(shrinkage=shrinkage, history_decay=decay)), validation)
        for shrinkage in grid["knn_shrinkage"]
        for decay in grid["knn_history_decay"]
    ]
    assert validation_ndcg(source, validation) == max(reached)
    assert "best of 4" in line


def test_settings_are_chosen_by_lists_that_hold_what_people_take_again(train: Histories) -> None:
    again = replace(holdout([[row] for row in range(N)], [[row] for row in range(N)]), exclude_known=False)
    own = np.eye(N, dtype=np.float32)  # a text is like itself alone
    (source,), _ = fitted(train, again, own, kinds=(BaselineKind.TRANSITIONS_TEXT,))
    assert source.config.text_weight > 0
    assert validation_ndcg(source, again) > 0.9
    assert validation_ndcg(source, replace(again, exclude_known=True)) == 0


def test_ease_is_skipped_above_its_limit_and_says_so(train: Histories, validation: Holdout) -> None:
    (found,), (line,) = fitted(train, validation, kinds=(BaselineKind.EASE,), ease_max_items=N - 1)
    assert isinstance(found, Skipped)
    assert found.name == "ease"
    assert f"{N} items" in found.reason
    assert "skipped" in line


def test_without_text_vectors_transitions_text_is_skipped(train: Histories, validation: Holdout) -> None:
    (found,), _ = fitted(train, validation, kinds=(BaselineKind.TRANSITIONS_TEXT,))
    assert found == Skipped("transitions + text", "no text vectors were given")


def test_an_empty_log_still_gives_lists() -> None:
    empty = Histories.of([[], []])
    sources, _ = fitted(empty, holdout([], []), np.eye(N, dtype=np.float32))
    assert isinstance(sources[4], Skipped)
    for source in sources[:4] + sources[5:]:
        assert source.candidates(empty, 3).item_rows.tolist() == [[0, 1, 2]] * 2


def test_without_validation_users_the_first_setting_is_taken(train: Histories) -> None:
    (source,), (line,) = fitted(train, holdout([], []), kinds=(BaselineKind.ITEM_KNN,))
    assert source.config.history_decay == BaselinesConfig().knn_history_decay[0]
    assert "no validation users" in line


def test_windows_without_times_are_one_option(train: Histories, validation: Holdout) -> None:
    (source,), (line,) = fitted(train, validation, kinds=(BaselineKind.RECENT_POPULARITY,))
    assert isinstance(source, RecentPopularity)
    assert "best of 1" in line


def test_many_validation_users_are_sampled_by_seed(
    train: Histories, monkeypatch: pytest.MonkeyPatch, validation: Holdout
) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(
        "baselines.lineup.validation_ndcg",
        lambda source, users: asked.append(users.user_rows.tolist()) or 0.0,
    )
    for _ in range(2):
        fitted(train, validation, kinds=(BaselineKind.POPULARITY,), tuning_users=7)
    assert len(asked[0]) == 7
    assert asked[0] == asked[1] == sorted(asked[0])


def test_settings_are_chosen_on_training_and_counts_taken_from_the_longer_log(
    train: Histories, validation: Holdout
) -> None:
    vectors = np.random.default_rng(3).normal(size=(N, 5)).astype(np.float32)
    longer = Histories.joined([train, Histories.of([[4, 9, 4, 9, 9]] * 40)])
    chosen, lines = fitted(train, validation, vectors)
    recounted, same_lines = fitted(train, validation, vectors, again=longer)
    assert [line.split(",")[0] for line in lines] == [line.split(",")[0] for line in same_lines]
    asked = Histories.of([[4]])
    for before, after in zip(chosen, recounted, strict=True):
        assert not isinstance(after, Skipped)
        assert not isinstance(before, Skipped)
        assert getattr(before, "config", None) == getattr(after, "config", None)
        assert 9 in after.candidates(asked, 2).item_rows[0], after.name
