"""Both stages behind one call: places, scores, reasons and costs of an answer."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from data.schema import Histories
from pipeline.workspace import open_workspace
from recommend.answer import Basis
from recommend.ledger import Spent, add_to_ledger
from recommend.recommender import RecommendConfig, Recommender, Rerank
from recommend.release import Stages, load_stages
from rerank.base import RerankRequest, RerankResult
from rerank.budget import Budget, Cap, Cut
from rerank.fusion import RERANKER, RETRIEVAL
from rerank.gate import Gate
from store.errors import BadInput, UnknownId
from tests.retrieval.toy import is_mapped

CONFIG = RecommendConfig(k=10, candidates=30, depth=8)


@dataclass
class ByTitle:
    """A reranker that prefers titles late in the alphabet, and remembers what it was asked."""

    name: str = "by title"
    requests: list[RerankRequest] = field(default_factory=list)
    calibrated: int = 0

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        self.requests += requests
        scores = [
            np.array([ord(text[0]) + ord(text[1]) / 1000 for text in request.candidates], dtype=np.float32)
            for request in requests
        ]
        tokens = [10 * len(request.candidates) + len(request.history) for request in requests]
        none = [0] * len(requests)
        uncut = [(Cut.NONE, Cap.NONE)] * len(requests)
        return RerankResult(scores, tokens, none, none, uncut)

    def calibrate(self) -> None:
        self.calibrated += 1


@pytest.fixture(scope="module")
def stages(shop) -> Stages:
    run = open_workspace(shop.run).run
    return load_stages(run, run.release())


def weighed(stages: Stages, *, retrieval: float, reranker: float) -> Stages:
    # The range is that of the scores of the reranker that was trained.
    fusion = replace(stages.fusion, weights={RETRIEVAL: retrieval, RERANKER: reranker}, ranges={})
    return replace(stages, reranker=ByTitle(), fusion=fusion)


@pytest.fixture
def two_stages(stages) -> Recommender:
    return Recommender(weighed(stages, retrieval=0.0, reranker=1.0), CONFIG)


@pytest.fixture
def unhelpful(stages) -> Recommender:
    return Recommender(weighed(stages, retrieval=1.0, reranker=0.0), CONFIG)


def history(recommender: Recommender, user: str = "u010"):
    return recommender.history_of(user)


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]


def test_the_item_vectors_of_a_release_are_no_copy_in_each_process(stages):
    assert is_mapped(stages.retriever.item_vectors)


def test_the_planted_rule_comes_out_on_top(stages):
    recommender = Recommender(replace(stages, reranker=None, fusion=None), CONFIG)
    first = [recommender.recommend(recommender.item_rows([f"i{row:02d}"]), k=1).items[0].item_id for row in range(59)]
    right = [found == f"i{row + 1:02d}" for row, found in enumerate(first)]
    assert np.mean(right) > 0.8


def test_places_after_both_stages_follow_from_their_scores(two_stages):
    retrieved = two_stages.retrieve(Histories.of([history(two_stages).tolist()]), 30)
    answer = two_stages.recommend(history(two_stages))
    place = {
        two_stages.catalog.vocabulary.ids[row]: rank for rank, row in enumerate(retrieved.item_rows[0].tolist(), 1)
    }
    assert [item.retrieval_rank for item in answer.items] == [place[item.item_id] for item in answer.items]
    read, rest = answer.items[:8], answer.items[8:]
    assert sorted(item.retrieval_rank for item in read) == list(range(1, 9))
    assert [item.rerank_rank for item in read] == list(range(1, 9))
    assert [item.title for item in read] == sorted((item.title for item in read), key=lambda t: t[:2], reverse=True)
    assert [item.retrieval_rank for item in rest] == [9, 10]
    assert [(item.rerank_rank, item.rerank_score) for item in rest] == [(None, None)] * 2
    for item in answer.items:
        before = item.retrieval_rank - 1
        assert item.retrieval_score == pytest.approx(float(retrieved.score[0, before]))
    assert [item.rerank_score for item in read] == pytest.approx(
        [ord(item.title[0]) + ord(item.title[1]) / 1000 for item in read]
    )


def test_rerank_places_are_by_its_own_score_even_where_the_fusion_orders_otherwise(stages):
    recommender = Recommender(weighed(stages, retrieval=1.0, reranker=0.5), CONFIG)
    answer = recommender.recommend(history(recommender), k=8)
    scores = {item.rerank_rank: item.rerank_score for item in answer.items}
    assert sorted(scores) == list(range(1, 9))
    assert [scores[rank] for rank in range(1, 9)] == sorted(scores.values(), reverse=True)
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    for item in answer.items:
        assert item.score == pytest.approx(item.retrieval_score + 0.5 * item.rerank_score, rel=1e-5)


def test_scores_fall_all_the_way_past_the_depth(two_stages):
    answer = two_stages.recommend(history(two_stages), k=30)
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert np.isfinite(scores).all()


def test_the_reranker_reads_the_texts_of_the_history_and_of_the_best_candidates(two_stages):
    answer = two_stages.recommend(history(two_stages), depth=5)
    (asked,) = two_stages.second.reranker.requests
    texts = two_stages.catalog.texts
    assert asked.history == tuple(texts[row] for row in history(two_stages))
    retrieved = two_stages.retrieve(Histories.of([history(two_stages).tolist()]), 30).item_rows[0, :5]
    assert asked.candidates == tuple(texts[row] for row in retrieved)
    assert answer.cost.reranked == 5


def test_without_weight_the_reranker_is_never_asked_and_the_order_is_retrievals(unhelpful, stages):
    alone = Recommender(replace(stages, reranker=None, fusion=None), CONFIG)
    for user in ("u004", "u010", "u050"):
        answer = unhelpful.recommend(history(unhelpful, user))
        assert ids(answer) == ids(alone.recommend(history(alone, user)))
        assert [item.rerank_rank for item in answer.items] == [None] * 10
        assert (answer.cost.reranked, answer.cost.prompt_tokens) == (0, 0)
    ranked = unhelpful.rank(stages.dataset.interactions, candidates=30)
    assert (ranked.depth, ranked.prompt_tokens.sum()) == (0, 0)
    assert not unhelpful.second.reranker.requests


def test_asked_for_all_the_same_it_shows_its_scores_but_moves_nothing(unhelpful):
    auto = unhelpful.recommend(history(unhelpful))
    shown = unhelpful.recommend(history(unhelpful), rerank=Rerank.ALWAYS)
    assert ids(shown) == ids(auto)
    assert [item.rerank_score is not None for item in shown.items] == [True] * 8 + [False] * 2
    assert shown.cost.reranked == 8


@pytest.mark.parametrize("how", [{"depth": 0}, {"rerank": Rerank.NEVER}])
def test_depth_zero_and_never_leave_the_order_of_retrieval(two_stages, how):
    answer = two_stages.recommend(history(two_stages), **how)
    assert [item.retrieval_rank for item in answer.items] == list(range(1, 11))
    assert not two_stages.second.reranker.requests


def test_a_depth_beyond_the_candidates_reads_them_all(two_stages):
    answer = two_stages.recommend(history(two_stages), depth=1000)
    assert answer.cost.reranked == answer.cost.candidates == 30


def test_costs_are_counted(two_stages):
    cost = two_stages.recommend(history(two_stages)).cost
    assert not cost.tied
    assert (cost.candidates, cost.reranked) == (30, 8)
    assert cost.prompt_tokens == 10 * 8 + len(history(two_stages))
    assert min(cost.retrieval_ms, cost.rerank_ms, cost.explain_ms) > 0


def test_reasons_are_items_of_the_history_and_the_planted_cause_comes_first(stages):
    recommender = Recommender(replace(stages, reranker=None, fusion=None), CONFIG)
    known = ["i40", "i41", "i05"]
    answer = recommender.recommend(recommender.item_rows(known), k=20)
    for item in answer.items:
        assert set(item.because) <= set(known)
        assert len(item.because) == len(set(item.because)) <= 2
    because = {item.item_id: item.because for item in answer.items}
    assert because["i06"][0] == "i05"
    assert because["i42"][0] == "i41"


def test_known_items_never_come_back_unless_allowed(two_stages, stages):
    for user in ("u003", "u010", "u099"):
        assert not set(ids(two_stages.recommend(history(two_stages, user), k=30))) & {
            two_stages.catalog.vocabulary.ids[row] for row in history(two_stages, user)
        }
    allowed = Recommender(
        weighed(stages, retrieval=1.0, reranker=0.0), CONFIG.model_copy(update={"exclude_known": False})
    )
    assert len(ids(allowed.recommend(history(allowed), k=60))) == 60


def test_an_empty_history_is_given_recent_popular_items_and_no_reranking(two_stages):
    answer = two_stages.recommend(np.zeros(0, dtype=np.int64), k=5)
    assert answer.basis is Basis.POPULAR
    best = np.argsort(-two_stages.retriever.recent_popularity, kind="stable")[:5]
    assert ids(answer) == [two_stages.catalog.vocabulary.ids[row] for row in best]
    assert all(item.because == () for item in answer.items)
    assert not two_stages.second.reranker.requests


def test_a_wish_is_answered_by_text_alone(two_stages):
    row = 17
    answer = two_stages.recommend(np.zeros(0, dtype=np.int64), k=3, query_vector=two_stages.retriever.text[row])
    assert answer.basis is Basis.QUERY
    assert ids(answer)[0] == f"i{row}"
    assert not two_stages.second.reranker.requests


def test_k_items_come_back_wherever_k_exist(two_stages):
    known = history(two_stages)
    assert len(two_stages.recommend(known, k=60).items) == 60 - len(known)
    for k in (1, 30, 31, 60 - len(known)):
        found = ids(two_stages.recommend(known, k=k))
        assert len(found) == len(set(found)) == k


@pytest.mark.parametrize("k", [0, -3, 61])
def test_a_k_that_no_list_can_have_is_refused(two_stages, k):
    with pytest.raises(BadInput, match=f"k is {k}, but the catalog has 60 items"):
        two_stages.recommend(history(two_stages), k=k)


def test_unknown_users_and_items(two_stages):
    with pytest.raises(UnknownId, match=r"user 'nobody' is not among the 120 known users"):
        two_stages.history_of("nobody")
    with pytest.raises(UnknownId, match=r"2 of 3 items are unknown: 'x', 'y'"):
        two_stages.item_rows(["x", "i01", "y"])


def test_one_user_alone_gets_what_she_gets_among_all(two_stages):
    everybody = two_stages.rank(two_stages.interactions, candidates=30).reranked
    for row in (0, 7, 64, 119):
        alone = two_stages.recommend(two_stages.interactions[row], k=30)
        batch = [two_stages.catalog.vocabulary.ids[item] for item in everybody.item_rows[row]]
        assert ids(alone) == batch


def test_two_calls_give_one_answer(stages, shop):
    recommender = Recommender(stages, open_workspace(shop.run).config.recommending)
    one, two = (recommender.recommend(history(recommender), rerank=Rerank.ALWAYS) for _ in range(2))
    assert one.items == two.items


# --- budgets and failures


def test_caps_reach_the_reranker_and_what_retrieval_took_is_deducted(two_stages):
    two_stages.recommend(history(two_stages), budget=Budget(max_tokens=50, max_ms=10_000))
    (asked,) = two_stages.second.reranker.requests
    assert asked.limits == {Cap.TOKENS: 50}
    assert 0 < asked.max_ms < 10_000
    assert two_stages.second.reranker.calibrated == 1
    two_stages.recommend(history(two_stages), budget=Budget(max_ms=0))
    assert two_stages.second.reranker.requests[-1].max_ms == 0
    assert two_stages.second.reranker.calibrated == 1


class Halving(ByTitle):
    """Reads the first half of what it is asked."""

    def score(self, requests):
        found = super().score([replace(one, candidates=one.candidates[: len(one.candidates) // 2]) for one in requests])
        return replace(found, cuts=[(Cut.DEPTH, Cap.TOKENS)] * len(requests))


def test_what_a_budget_left_unread_stays_below_in_the_order_of_retrieval(stages):
    halving = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Halving()), CONFIG)
    answer = halving.recommend(history(halving), k=12)
    assert answer.left_out == "fewer candidates (max_tokens)"
    assert answer.cost.reranked == 4
    assert sorted(item.retrieval_rank for item in answer.items[:4]) == [1, 2, 3, 4]
    assert [item.retrieval_rank for item in answer.items[4:]] == list(range(5, 13))
    assert [item.rerank_rank for item in answer.items] == [1, 2, 3, 4] + [None] * 8
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)


class Passing(ByTitle):
    """Reads nothing."""

    def score(self, requests):
        found = super().score([replace(one, candidates=()) for one in requests])
        return replace(found, cuts=[(Cut.PASSED, Cap.TIME)] * len(requests), prompt_tokens=[0] * len(requests))


def test_a_budget_for_nothing_passes_the_order_of_retrieval_through(stages):
    passing = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Passing()), CONFIG)
    answer = passing.recommend(history(passing))
    assert [item.retrieval_rank for item in answer.items] == list(range(1, 11))
    assert [item.score for item in answer.items] == [item.retrieval_score for item in answer.items]
    assert answer.not_reranked == "the budget is too small (max_ms)"
    assert (answer.cost.reranked, answer.cost.prompt_tokens, answer.degraded) == (0, 0, "")


class Broken(ByTitle):
    """Fails as it is told."""

    def score(self, requests):
        if self.name == "nan":
            found = super().score(requests)
            return replace(found, scores=[np.full_like(scores, np.nan) for scores in found.scores])
        raise {"raise": ZeroDivisionError("by zero"), "memory": MemoryError(), "key": KeyError("x")}[self.name]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ZeroDivisionError: by zero"),
        ("memory", "MemoryError"),
        ("key", "KeyError: 'x'"),
        ("nan", "ValueError: the reranker's scores are not finite"),
    ],
)
def test_a_reranker_that_fails_leaves_the_order_of_retrieval_and_says_so(stages, how, reason, caplog):
    broken = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Broken(how)), CONFIG)
    answer = broken.recommend(history(broken))
    assert [item.retrieval_rank for item in answer.items] == list(range(1, 11))
    assert reason in answer.degraded
    assert reason in answer.not_reranked
    assert "the reranker failed" in caplog.text
    asked = Histories.of([history(broken).tolist()])
    with pytest.raises((ZeroDivisionError, MemoryError, KeyError, ValueError)):  # a report must not hide it
        broken.rerank(broken.retrieve(asked, 30), asked)


def test_tokens_that_gave_no_score_were_spent_all_the_same(stages):
    broken = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Broken("nan")), CONFIG)
    cost = broken.recommend(history(broken)).cost
    assert (cost.reranked, cost.prompt_tokens) == (0, 10 * 8 + len(history(broken)))


class Picky(ByTitle):
    """Cannot bear calls with histories of one length; of another it knows no scores."""

    def score(self, requests):
        if any(len(request.history) == 5 for request in requests):
            raise MemoryError("too long")
        found = super().score(requests)
        spoilt = [len(request.history) == 6 for request in requests]
        scores = [values * np.nan if bad else values for values, bad in zip(found.scores, spoilt, strict=True)]
        return replace(found, scores=scores)


def test_of_many_users_only_those_whom_the_reranker_fails_for_keep_the_order_of_retrieval(stages, caplog):
    sharp = weighed(stages, retrieval=0.0, reranker=1.0)
    histories = stages.dataset.interactions
    whole = Recommender(sharp, CONFIG).rank(histories, candidates=30)
    picky = Recommender(replace(sharp, reranker=Picky()), CONFIG)
    ranked = picky.rank(histories, candidates=30)
    failed = np.isin(histories.lengths, (5, 6))
    assert 0 < failed.sum() < len(histories)
    assert [bool(why) for why in ranked.degraded] == failed.tolist()
    assert set(ranked.degraded) == {
        "",
        "MemoryError: too long",
        "ValueError: the reranker's scores are not finite",
    }
    np.testing.assert_array_equal(ranked.reranked.item_rows[failed], ranked.retrieved.item_rows[failed])
    np.testing.assert_array_equal(ranked.reranked.item_rows[~failed], whole.reranked.item_rows[~failed])
    assert ranked.read[failed].sum() == 0
    assert caplog.text.count("the reranker failed") == 1


def test_what_many_users_cost_is_told(two_stages):
    histories = two_stages.interactions
    spent = two_stages.rank(histories, candidates=30).spent
    assert (spent.requests, spent.reranked, spent.candidates, spent.tied) == (120, 120, 120 * 8, 0)
    assert spent.prompt_tokens == 120 * 10 * 8 + len(histories.item_rows)
    assert min(spent.retrieval_ms, spent.rerank_ms) > 0


class Constant(ByTitle):
    """Likes everything alike."""

    def score(self, requests):
        found = super().score(requests)
        return replace(found, scores=[np.zeros_like(scores) for scores in found.scores])


def test_tied_scores_keep_the_order_of_retrieval_and_are_counted(stages):
    constant = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Constant()), CONFIG)
    ranked = constant.rank(Histories.of([history(constant).tolist()]), candidates=30)
    np.testing.assert_array_equal(ranked.reranked.item_rows, ranked.retrieved.item_rows)
    assert ranked.tied.tolist() == [True]
    cost = constant.recommend(history(constant)).cost
    assert (cost.tied, cost.spent.tied, cost.spent.reranked) == (True, 1, 1)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_whom_the_gate_leaves_out_is_not_asked_about(stages, share):
    histories = stages.dataset.interactions
    retrieved = Recommender(stages, CONFIG).retrieve(histories, 30)
    gains = np.random.default_rng(0).random(len(histories))
    gate = Gate.fit(retrieved.head(8), histories.lengths, gains)
    gated = Recommender(
        replace(weighed(stages, retrieval=0.0, reranker=1.0), gate=gate),
        CONFIG.model_copy(update={"gate_share": share}),
    )
    ranked = gated.rank(histories, candidates=30)
    opened = gate.opens(retrieved.head(8), histories.lengths, share=share)
    assert (ranked.read > 0).tolist() == opened.tolist()
    assert [cut is Cut.GATED for cut, _ in ranked.cuts] == (~opened).tolist()
    np.testing.assert_array_equal(ranked.reranked.item_rows[~opened], ranked.retrieved.item_rows[~opened])
    left_out = int(np.flatnonzero(~opened)[0])
    answer = gated.recommend(histories[left_out])
    assert answer.not_reranked == "the gate expects no gain"
    assert answer.left_out == ""
    assert gated.recommend(histories[left_out], rerank=Rerank.ALWAYS).cost.reranked == 8


def test_a_day_costs_no_more_than_its_allowance(stages, tmp_path):
    """The tiny reranker itself: many users, whose tokens are counted as they are fed."""
    sharp = replace(stages, fusion=replace(stages.fusion, weights={RETRIEVAL: 0.0, RERANKER: 1.0}))
    free = Recommender(sharp, CONFIG).rank(stages.dataset.interactions, candidates=30)
    whole = int(free.prompt_tokens.sum())
    add_to_ledger(tmp_path, Spent(prompt_tokens=10))
    config = CONFIG.model_copy(update={"max_tokens_per_day": whole // 3})
    capped = Recommender(sharp, config, ledger=tmp_path)
    ranked = capped.rank(stages.dataset.interactions, candidates=30)
    spent = ranked.spent.fed_tokens
    assert whole // 6 < spent <= whole // 3 - 10
    assert (Cut.PASSED, Cap.DAY) in ranked.cuts
    other = Recommender(sharp, config, ledger=tmp_path)  # as in another process
    assert other.recommend(stages.dataset.interactions[0]).cost.prompt_tokens <= whole // 3 - 10 - spent


class Slow(ByTitle):
    """Reads what its cap allows, ten tokens a candidate, and lets others come meanwhile."""

    def score(self, requests):
        time.sleep(0.05)
        asked = [replace(one, history=(), candidates=one.candidates[: one.limits[Cap.DAY] // 10]) for one in requests]
        return super().score(asked)


def test_calls_at_the_same_time_do_not_exceed_the_day_together(stages):
    sharp = replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Slow())
    capped = Recommender(sharp, CONFIG.model_copy(update={"max_tokens_per_day": 400}))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: capped.recommend(capped.interactions[user]), range(8)))
        spent = sum(answer.cost.prompt_tokens for answer in answers)
        assert 0 < spent <= 400
        answers = [capped.recommend(capped.interactions[user]) for user in range(8)]
    assert spent + sum(answer.cost.prompt_tokens for answer in answers) == 400
