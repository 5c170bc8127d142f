"""A network over the fusion is kept where validation gains by it, saved, and repeated by other fits."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from data.schema import Histories, Holdout
from eval.metrics import ndcg10
from fusion.network import NETWORK, NetworkConfig
from index.faiss_index import FlatIndex
from recommend.reasons import lifts
from retrieval import weighing
from retrieval.fit import FittedRetriever, Recipe
from retrieval.folder import load_retriever, read_recipe, save_retriever
from retrieval.retriever import POPULARITY, Retriever
from retrieval.weighing import Weighed, with_fitted_fusion
from tests.retrieval.toy import item_texts, nobody, retriever, text_vectors

N = 40
NETWORK_CONFIG = NetworkConfig(epochs=8, reach=20, width=16, learning_rate=0.01, batch_size=32)


@cache
def plain() -> Retriever:
    found = retriever(N, per_source=20)
    return replace(found, config=found.config.model_copy(update={"network": NETWORK_CONFIG}))


def asked(users: int, *, seed: int, by_chance: bool = False) -> Holdout:
    """Users who take what one kind of towers likes and the other does not; or anything."""
    rng = np.random.default_rng(seed)
    histories = Histories.of([rng.choice(N, rng.integers(1, 6), replace=False).tolist() for _ in range(users)])
    unions = plain().unions(histories)
    one, other = (_standard(unions.sources[kind], unions.present) for kind in ("recency", "sequence"))
    wanted = np.where(unions.present, rng.random(one.shape) if by_chance else -one * other, -np.inf)
    rows = np.take_along_axis(unions.item_rows, wanted.argmax(axis=1)[:, None], 1)
    return Holdout("validation", np.arange(users), histories, Histories.of(rows.tolist()))


def _standard(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    return (scores - scores[present].mean()) / scores[present].std()


LEARNERS, VALIDATION, OTHERS = (asked(users, seed=seed) for seed, users in enumerate((800, 200, 200)))


def weighed(log: list[dict[str, Any]] | None = None, said: list[str] | None = None, **changes: Any) -> Weighed:
    asking = {"validation": VALIDATION, "learners": LEARNERS, "found": plain()} | changes
    return with_fitted_fusion(
        asking["found"],
        asking["validation"],
        [].append if log is None else log.append,
        learners=asking["learners"],
        say=[].append if said is None else said.append,
    )


@pytest.fixture(scope="module")
def made() -> Weighed:
    return weighed()


def reached(found: Retriever, holdout: Holdout) -> float:
    return float(ndcg10(found.candidates(holdout.histories, 20), holdout.targets).mean())


def test_one_that_helps_is_kept_and_orders_what_is_served(made):
    found = made.retriever
    assert reached(found, OTHERS) > reached(found.linear, OTHERS) + 0.1
    assert made.ndcg10 == pytest.approx(reached(found, VALIDATION), abs=0.01)
    assert NETWORK in found.candidates(OTHERS.histories, 5).sources
    assert found.linear.network is None


def test_it_says_beforehand_whom_it_learns_from_and_the_log_what_was_kept():
    log: list[dict[str, Any]] = []
    said: list[str] = []
    found = weighed(log, said)
    assert [line for line in said if "800 users" in line] == said != []
    told = log[-1]
    assert told["minutes"] > 0
    assert (told["stage"], told["users"], told["kept"]) == ("network", 800, True)
    assert 1 <= told["epoch"] <= NETWORK_CONFIG.epochs
    assert told["validation_ndcg@10"] == pytest.approx(found.ndcg10, abs=1e-5)


def test_one_that_learnt_from_chance_is_not_kept():
    log: list[dict[str, Any]] = []
    by_chance = {"learners": asked(200, seed=3, by_chance=True), "validation": asked(100, seed=4, by_chance=True)}
    found = weighed(log, **by_chance)
    assert found.retriever.network is None
    assert log[-1]["kept"] is False
    before = with_fitted_fusion(plain(), by_chance["validation"], [].append)
    assert found.ndcg10 == before.ndcg10


@pytest.mark.parametrize(
    "changes",
    [
        {"learners": None},
        {"learners": nobody()},
        {"found": replace(plain(), config=plain().config.model_copy(update={"network": NetworkConfig(epochs=0)}))},
    ],
)
def test_without_learners_or_epochs_there_is_none(changes):
    assert weighed(**changes).retriever.network is None


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_training_that_diverges_leaves_the_weighted_sum(rate):
    wild = NETWORK_CONFIG.model_copy(update={"learning_rate": rate})
    found = weighed(found=replace(plain(), config=plain().config.model_copy(update={"network": wild})))
    assert found.retriever.network is None


def test_only_so_many_learners_are_asked():
    log: list[dict[str, Any]] = []
    few = NETWORK_CONFIG.model_copy(update={"users": 50, "epochs": 1})
    weighed(log, found=replace(plain(), config=plain().config.model_copy(update={"network": few})))
    assert log[-1]["users"] == 50


def test_it_is_taught_by_lists_of_the_weighted_sum_alone(made, monkeypatch):
    """A network that was there before would have ordered them already."""
    asked_of: list[Retriever] = []
    whole = Retriever.candidates

    def candidates(self: Retriever, *args: Any, **more: Any) -> Any:
        asked_of.append(self)
        return whole(self, *args, **more)

    monkeypatch.setattr(weighing.Retriever, "candidates", candidates)
    weighed(found=made.retriever)
    assert asked_of
    assert all(one.network is None for one in asked_of)


def test_an_empty_history_has_its_popular_items_in_their_own_order(made):
    found = made.retriever.candidates(Histories.of([[], [3, 5]]), 5)
    popular = np.argsort(-made.retriever.recent_popularity, kind="stable")[:5]
    np.testing.assert_array_equal(found.item_rows[0], popular)
    assert (found.sources[NETWORK][0] == 0).all()
    assert (found.sources[POPULARITY][0] > 0).any()


def test_its_share_in_what_lifts_an_item_is_told_beside_those_of_the_sources(made):
    one = made.retriever.candidates(OTHERS.histories.take(np.array([4])), 10)
    told = lifts(made.retriever, one)
    assert told[NETWORK].max() > 0.05
    np.testing.assert_allclose(sum(told.values()), 1, atol=1e-5)


def test_it_is_saved_with_the_retriever_and_told_by_its_recipe(made, tmp_path):
    found = made.retriever
    recipe = Recipe(found.transitions.config, {}, found.towers.weights, found.fusion, network=found.network)
    save_retriever(tmp_path, FittedRetriever(found, text_vectors(N), recipe, [], None, made.ndcg10), text_vectors="key")
    loaded = load_retriever(tmp_path, texts=item_texts(N), text_vectors=text_vectors(N), index=FlatIndex)
    lists = found.linear.candidates(OTHERS.histories, 10)
    for kept in (loaded.network, read_recipe(tmp_path).network):
        assert kept is not None
        again, before = (one.reordered(lists, found.fusion) for one in (kept, found.network))
        np.testing.assert_array_equal(again.item_rows, before.item_rows)
        np.testing.assert_array_equal(again.score, before.score)
