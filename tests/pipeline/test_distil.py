"""A reranker teaches the first stage through the steps of a run."""

from dataclasses import replace

import numpy as np
import pytest

from config import with_overrides
from pipeline.build_index import build_index
from pipeline.train_retriever import open_retriever, train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
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
