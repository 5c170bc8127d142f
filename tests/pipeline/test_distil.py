"""A reranker teaches the first stage through the steps of a run."""

from dataclasses import replace

import numpy as np
import pytest

from config import with_overrides
from data.schema import Histories
from pipeline import distil as module
from pipeline import train_reranker as training
from pipeline.build_index import build_index
from pipeline.train_retriever import open_retriever, train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from retrieval.distil import Lessons
from retrieval.folder import read_card
from store.errors import BadInput, Mismatch, MissingStep
from tests.pipeline.shop import quiet, weigh_reranker


@pytest.fixture(scope="module")
def weighed(shop, tmp_path_factory) -> Workspace:
    root = shop.copy(tmp_path_factory.mktemp("distil"))
    weigh_reranker(root, retrieval=1.0, reranker=0.5)
    return open_workspace(root)


def taught_by(ws: Workspace, key: str, *more: str) -> Workspace:
    settings = [f"retriever.distil.teacher={key}", "retriever.distil.learning_rate=0.01", *more]
    return replace(ws, config=with_overrides(ws.config, settings))


def test_settings_of_a_teacher_that_is_not_there_ask_for_no_other_retriever(weighed) -> None:
    other = replace(weighed, config=with_overrides(weighed.config, ["retriever.distil.epochs=9"]))
    assert other.retriever_key(FitKind.EVALUATION) == weighed.retriever_key(FitKind.EVALUATION)


def test_the_taught_retriever_is_one_of_its_own_with_the_same_items(weighed) -> None:
    teacher = weighed.reranker_key(FitKind.EVALUATION)
    ws = taught_by(weighed, teacher)
    key = train_retriever(ws, log=quiet(ws))
    assert key == ws.retriever_key(FitKind.EVALUATION) != weighed.retriever_key(FitKind.EVALUATION)
    before, after = (open_retriever(one, FitKind.EVALUATION) for one in (weighed, ws))
    np.testing.assert_array_equal(before.item_vectors, after.item_vectors)
    told = [record for record in read_card(ws.run.artifact("retriever", key)).records if record.get("taught")]
    assert [record["name"] for record in told] == ["recency-1", "sequence-1"]
    for record, old, new in zip(told, before.towers.members, after.towers.members, strict=True):
        same = np.array_equal(
            old.towers.user_vectors(ws.selectors.histories), new.towers.user_vectors(ws.selectors.histories)
        )
        assert same == (record["best_epoch"] == 0)
        assert record["best_ndcg10"] >= record["before_ndcg10"]
    assert build_index(ws, log=quiet(ws)).retriever == key


def lessons_of(ws: Workspace, monkeypatch, fit: FitKind = FitKind.EVALUATION) -> Lessons:
    """What the towers of this workspace are taught."""
    seen: list[Lessons] = []
    true_distillation = module.distil_towers

    def spied(ensemble, lessons, **settings):
        seen.append(lessons)
        return true_distillation(ensemble, lessons, **settings)

    monkeypatch.setattr(module, "distil_towers", spied)
    train_retriever(ws, log=quiet(ws), fit=fit, force=ws.run.has("retriever", ws.retriever_key(fit)))
    return seen[-1]


def lists(histories: Histories) -> list[list[int]]:
    return [histories[place].tolist() for place in range(len(histories)) if len(histories[place])]


def test_a_teacher_is_not_asked_about_what_it_was_taught(weighed, monkeypatch) -> None:
    """Its lessons were group A's histories and the item after each."""
    ws = taught_by(weighed, weighed.reranker_key(FitKind.EVALUATION))
    found = lessons_of(ws, monkeypatch)
    assert lists(found.histories) == lists(ws.learners.histories.without_last(1))
    assert found.histories.asked_at is not None
    assert found.histories.timestamps is not None
    assert (found.histories.asked_at == found.histories.timestamps[found.histories.offsets[1:] - 1]).all()
    final = lessons_of(ws, monkeypatch, FitKind.FINAL)
    assert lists(final.histories) == lists(ws.dataset.interactions)


def test_the_fused_first_stage_teaches_its_own_towers(weighed, monkeypatch) -> None:
    ws = taught_by(weighed, "retrieval", "retriever.distil.depth=12")
    found, base = lessons_of(ws, monkeypatch), open_retriever(weighed, FitKind.EVALUATION)
    assert lists(found.histories) == lists(ws.learners.histories)
    expected = base.candidates(found.histories, 12)
    np.testing.assert_array_equal(found.candidates.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.scores[expected.present], expected.score[expected.present], rtol=1e-6)
    after = open_retriever(ws, FitKind.EVALUATION)
    np.testing.assert_array_equal(base.item_vectors, after.item_vectors)
    assert ws.retriever_key(FitKind.EVALUATION) != weighed.retriever_key(FitKind.EVALUATION)


def test_the_first_stage_teaches_a_reranker_that_does_not_learn_beside_it(weighed, monkeypatch) -> None:
    with pytest.raises(BadInput, match=r"nothing to teach.*set residual to false"):
        with_overrides(weighed.config, ["reranker.teacher=retrieval"])
    ws = replace(
        weighed, config=with_overrides(weighed.config, ["reranker.teacher=retrieval", "reranker.residual=false"])
    )
    seen = []
    true_fit = training.fit_reranker

    def spied(reranker, task, **settings):
        seen.append(task)
        return true_fit(reranker, task, **settings)

    monkeypatch.setattr(training, "fit_reranker", spied)
    training.make_reranker(ws, log=quiet(ws), fit=FitKind.EVALUATION)
    (task,) = seen
    head = task.learner_candidates.head(ws.config.reranker.depth)
    np.testing.assert_array_equal(task.teacher_scores, np.where(head.present, head.score, 0))


def test_a_final_fit_repeats_the_epochs(weighed) -> None:
    ws = taught_by(weighed, weighed.reranker_key(FitKind.EVALUATION))
    first = read_card(ws.run.artifact("retriever", train_retriever(ws, log=quiet(ws)))).records
    key = train_retriever(ws, log=quiet(ws), fit=FitKind.FINAL)
    final = read_card(ws.run.artifact("retriever", key))
    chosen = [
        [(one["name"], one["best_epoch"]) for one in records if one.get("taught")] for records in (first, final.records)
    ]
    assert chosen[0] == chosen[1]


def test_teachers_that_cannot_teach_are_refused(weighed, shop, tmp_path) -> None:
    with pytest.raises(MissingStep, match="has no reranker 0123"):
        train_retriever(ws := taught_by(weighed, "0123"), log=quiet(ws))
    useless = open_workspace(shop.copy(tmp_path))
    weigh_reranker(useless.run.root, retrieval=1.0, reranker=0.0)
    with pytest.raises(BadInput, match=r"retriever\.distil\.teacher is .* has weight 0"):
        train_retriever(ws := taught_by(useless, useless.reranker_key(FitKind.EVALUATION)), log=quiet(ws))
    stranger = taught_by(weighed, weighed.reranker_key(FitKind.EVALUATION), "retriever.recency.epochs=1")
    with pytest.raises(Mismatch, match="trained behind retriever"):
        train_retriever(stranger, log=quiet(stranger))
