"""What the second stage may cost, and what becomes of an answer when it fails."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from data.schema import Histories
from recommend.ledger import Spent, add_to_ledger
from recommend.recommender import Recommender, Rerank
from rerank.budget import Budget, Cap, Cut
from rerank.fusion import RERANKER, RETRIEVAL
from rerank.gate import Gate
from tests.recommend.by_title import CONFIG, ByTitle, history, weighed


def test_caps_reach_the_reranker_and_what_retrieval_took_is_deducted(two_stages):
    two_stages.recommend(history(two_stages), budget=Budget(max_tokens=50, max_ms=10_000))
    (asked,) = two_stages.second.reranker.requests
    assert asked.limits == {Cap.TOKENS: 50}
    assert 0 < asked.max_ms < 10_000
    assert two_stages.second.reranker.calibrated == 1
    two_stages.recommend(history(two_stages), budget=Budget(max_ms=0))
    assert two_stages.second.reranker.requests[-1].max_ms == 0
    assert two_stages.second.reranker.calibrated == 1


class Unhurried(ByTitle):
    """Takes its time to learn how fast it reads."""

    def calibrate(self) -> None:
        super().calibrate()
        time.sleep(0.5)


def test_learning_how_fast_it_reads_is_no_part_of_the_first_capped_request(stages):
    slow = Recommender(replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Unhurried()), CONFIG)
    answer = slow.recommend(history(slow), budget=Budget(max_ms=10_000))
    assert slow.second.reranker.calibrated == 1
    assert answer.cost.retrieval_ms + answer.cost.rerank_ms < 500


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


def test_a_long_history_is_cut_before_it_is_asked_and_reserves_no_more_than_its_prompt_may_have(stages):
    reads = stages.prompt
    sharp = replace(weighed(stages, retrieval=0.0, reranker=1.0), prompt=reads)
    capped = Recommender(sharp, CONFIG.model_copy(update={"max_tokens_per_day": 10_000}))
    reserved, reserve = [], capped.second.allowance.reserve
    capped.second.allowance.reserve = lambda tokens: reserved.append(tokens) or reserve(tokens)
    capped.recommend(np.tile(history(capped), 500), k=3)
    (asked,) = capped.second.reranker.requests
    assert 0 < len(asked.history) <= reads.max_history_items
    assert asked.history[-1] == capped.texts[history(capped)[-1]]
    assert reserved[0] < (reads.max_history_items + CONFIG.depth + 1) * (16 + reads.max_candidate_tokens) < 1000


def test_calls_at_the_same_time_do_not_exceed_the_day_together(stages):
    sharp = replace(weighed(stages, retrieval=0.0, reranker=1.0), reranker=Slow())
    capped = Recommender(sharp, CONFIG.model_copy(update={"max_tokens_per_day": 400}))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: capped.recommend(capped.interactions[user]), range(8)))
        spent = sum(answer.cost.prompt_tokens for answer in answers)
        assert 0 < spent <= 400
        answers = [capped.recommend(capped.interactions[user]) for user in range(8)]
    assert spent + sum(answer.cost.prompt_tokens for answer in answers) == 400
