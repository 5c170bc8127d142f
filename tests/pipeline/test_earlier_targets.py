"""Further lessons from inside the histories, with candidates of a retriever that never saw the answers."""

from dataclasses import replace

import numpy as np
import pytest

from config import with_overrides
from data.schema import Histories
from pipeline.train_reranker import earlier_holdout, train_reranker
from pipeline.train_retriever import fitted_on, open_retriever
from pipeline.workspace import FitKind, open_workspace
from rerank import fit as module
from tests.pipeline.shop import quiet

TRAIN = Histories(
    np.array([1, 2, 3, 4, 5, 6, 7]), np.array([0, 4, 4, 5, 7]), np.array([10, 20, 30, 40, 50, 60, 70], dtype=np.int64)
)


@pytest.mark.parametrize(
    ("steps", "users", "histories", "targets"),
    [(1, [0, 3], [[1, 2, 3], [6]], [4, 7]), (2, [0], [[1, 2]], [3]), (3, [0], [[1]], [2]), (4, [], [], [])],
)
def test_each_step_asks_for_one_item_knowing_all_before_it(steps, users, histories, targets) -> None:
    asked = earlier_holdout(TRAIN, steps)
    assert asked.user_rows.tolist() == users
    assert [asked.histories[place].tolist() for place in range(len(asked))] == histories
    assert asked.targets.item_rows.tolist() == targets
    assert asked.targets.lengths.tolist() == [1] * len(users)
    if users:
        assert asked.histories.asked_at is not None
        assert asked.histories.asked_at[0] == 10 * (4 - steps)


def test_the_reranker_learns_from_them_and_their_retriever_has_not(shop, tmp_path, monkeypatch) -> None:
    ws = open_workspace(shop.copy(tmp_path))
    ws = replace(ws, config=with_overrides(ws.config, ["reranker.earlier_targets=2"]))
    seen = []
    true_fit = module.fit_reranker

    def spied(reranker, task, **settings):
        seen.append(task)
        return true_fit(reranker, task, **settings)

    monkeypatch.setattr("pipeline.train_reranker.fit_reranker", spied)
    train_reranker(ws, log=quiet(ws))
    (task,) = seen
    train, plain = ws.split.train, len(ws.learners)
    expected = sum((train.lengths > steps).sum() for steps in (1, 2))
    assert len(task.learners) == plain + expected == len(task.learner_candidates)
    # No target of theirs is in what their retriever was fitted on, for that user.
    fitted = fitted_on(ws, FitKind.EARLIER)
    assert len(fitted.item_rows) < len(train.item_rows)
    for place in range(plain, len(task.learners)):
        user, target = int(task.learners.user_rows[place]), int(task.learners.targets[place][0])
        assert target not in fitted[user]
    # Their candidates are those of that retriever.
    earlier = open_retriever(ws, FitKind.EARLIER)
    places = np.arange(plain, len(task.learners))
    again = earlier.candidates(task.learners.histories.take(places), 50)
    assert np.array_equal(again.item_rows, task.learner_candidates.item_rows[places, : again.depth])
