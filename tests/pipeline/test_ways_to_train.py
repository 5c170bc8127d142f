"""Ways to train the second stage through the steps of a run: by ratings, from pairs, with hints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import with_overrides
from pipeline.evaluate import Part, evaluation_recommender
from pipeline.train_reranker import make_reranker
from pipeline.workspace import FitKind, Workspace, open_workspace
from recommend.release import load_reranker
from rerank import fit as module
from rerank.fit import request_of
from rerank.hints import Hint
from retrieval.folder import read_card
from store.errors import BadInput
from tests.pipeline.shop import DAY_S, START_S, USERS, item_id, log_rows, quiet, train, write_rows


def with_settings(ws: Workspace, *settings: str) -> Workspace:
    return replace(ws, config=with_overrides(ws.config, settings))


def spied_rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What each round of a reranker's training will have been given."""
    seen: list[tuple] = []
    true_training = module.train_reranker

    def spied(reranker, lists, **settings):
        seen.append((lists, settings["validation"], settings["config"]))
        return true_training(reranker, lists, **settings)

    monkeypatch.setattr(module, "train_reranker", spied)
    return seen


def rounds_of(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[tuple]]:
    """The key of what is made, and what each round was given."""
    seen = spied_rounds(monkeypatch)
    return make_reranker(ws, log=quiet(ws), fit=FitKind.EVALUATION), seen


@pytest.fixture(scope="module")
def rated(shop, tmp_path_factory) -> Workspace:
    """The shop, whose items of even numbers are loved, 5 of 5, and the others not, 2 or unrated."""
    folder = tmp_path_factory.mktemp("rated")
    rows = [[*row, "5" if int(row[1][1:]) % 2 == 0 else "2" if int(row[1][1:]) % 3 else ""] for row in log_rows()]
    log: Path = write_rows(folder / "log.csv", ["user_id", "item_id", "timestamp", "rating"], rows)
    return train(folder / "run", log, shop)


def test_ratings_teach_a_reranker_that_expects_them(rated, monkeypatch) -> None:
    ws = with_settings(rated, "reranker.train.objective=graded", "reranker.train.epochs=3")
    key, rounds = rounds_of(ws, monkeypatch)
    ((lists, validation, config),) = rounds
    assert config.budget_minutes == ws.config.reranker.train.budget_minutes
    # Group B's ratings validate and teach nothing: one place of each history, and the others have no more of them.
    others = np.setdiff1d(np.arange(len(ws.split.train)), ws.selectors.user_rows)
    known = {tuple(ws.split.train[row][:place].tolist()) for row in others for place in range(1, 12)}
    assert {tuple(lists.histories[place].tolist()) for place in range(len(lists))} <= known
    assert 0.7 * len(others) < len(lists) <= len(others)
    assert 0 < len(validation) <= len(ws.selectors)
    items = np.array([int(item[1:]) for item in ws.dataset.catalog.vocabulary.ids])
    there = lists.candidates >= 0
    assert ((lists.grades[there] == 1) == (items[lists.candidates[there]] % 2 == 0)).all()
    reranker, fusion, _ = load_reranker(ws.run, key)
    assert reranker.config.grades == (2.0, 5.0)
    retrieved = evaluation_recommender(ws, Part.VALIDATION, with_reranker=True, log=quiet(ws)).retrieve(
        ws.selectors.histories, 8
    )
    asked = [request_of(ws.dataset.catalog.texts, retrieved, ws.selectors.histories, place) for place in range(5)]
    scores = np.concatenate(reranker.score(asked).scores)
    assert ((scores > 2) & (scores < 5)).all()
    assert set(fusion.weights) == {"retrieval", "reranker"}


def test_without_ratings_there_is_nothing_to_grade(shop, tmp_path) -> None:
    ws = with_settings(open_workspace(shop.copy(tmp_path)), "reranker.train.objective=graded")
    with pytest.raises(BadInput, match=r"graded, but the log has no ratings.*--map rating=COLUMN"):
        make_reranker(ws, log=quiet(ws), fit=FitKind.EVALUATION)


def test_a_warm_start_from_pairs_comes_first_and_takes_its_share(shop, tmp_path, monkeypatch) -> None:
    ws = with_settings(open_workspace(shop.copy(tmp_path)), "reranker.pairs_share=0.25", "reranker.easy_share=0.5")
    _, rounds = rounds_of(ws, monkeypatch)
    minutes = ws.config.reranker.train.budget_minutes
    assert [config.budget_minutes for _, _, config in rounds] == [minutes * 0.25, minutes * 0.5, minutes * 0.25]
    (pairs, of_pairs, _), (easy, _, _), _ = rounds
    assert pairs.targets.tolist() == easy.targets.tolist()
    assert set(pairs.histories.lengths.tolist()) == set(of_pairs.histories.lengths.tolist()) == {1}
    assert [pairs.histories[place][0] for place in range(9)] == [easy.histories[place][-1] for place in range(9)]


@pytest.mark.parametrize("hint", [Hint.RANK, Hint.TRANSITIONS])
def test_hints_reach_the_lists_and_the_requests(shop, tmp_path, monkeypatch, hint) -> None:
    ws = with_settings(open_workspace(shop.copy(tmp_path)), f"reranker.encoder.prompt.hint={hint}")
    key, rounds = rounds_of(ws, monkeypatch)
    (easy, _, _), (hard, of_hard, _) = rounds
    assert easy.hints is None
    assert (hard.hints[hard.candidates >= 0] >= 0).all()
    assert len(np.unique(of_hard.hints)) > 1
    assert load_reranker(ws.run, key)[0].config.prompt.hint is hint


def test_where_people_take_things_again_all_is_selected_and_taught_by_lists_that_hold_them(
    shop, tmp_path, monkeypatch
) -> None:
    """Everybody takes two items in turn, so that whatever comes next is known."""
    turns = [
        [f"u{user:03d}", item_id(2 * user + step % 2), str(START_S + step * DAY_S)]
        for user in range(USERS)
        for step in range(6)
    ]
    log = write_rows(tmp_path / "log.csv", ["user_id", "item_id", "timestamp"], turns)
    seen = spied_rounds(monkeypatch)
    ws = train(tmp_path / "run", log, shop, "recommend.exclude_known=false")
    card = read_card(ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION)))
    assert all(record["best_ndcg10"] > 0.3 for record in card.records)
    assert seen
    for lists, validation, _ in seen:
        assert not lists.exclude_known
        assert not validation.exclude_known
    hard = seen[-1][0]
    assert len(hard.found) == len(hard) > 0  # what came next is among the candidates, though it is known
    usual = with_settings(ws, "recommend.exclude_known=true")
    assert usual.retriever_key(FitKind.EVALUATION) != ws.retriever_key(FitKind.EVALUATION)
