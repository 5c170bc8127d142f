"""What is known of a user stands before the history, and never falls out."""

import dataclasses
import math

import numpy as np
import pytest

from data.schema import Candidates, Histories
from rerank.adapters import AdapterConfig
from rerank.base import RerankRequest
from rerank.budget import Cap
from rerank.fit import request_of
from rerank.lists import TrainingLists, earlier_positions
from rerank.packing import NO_AGE
from rerank.train import train_reranker
from tests.rerank.test_train import FAST, PLANTED, quiet
from tests.rerank.tiny_bert import CONFIG, WORDS, shaken, untrained
from tests.rerank.tiny_llama import untrained as untrained_llama

KINDS = 6
ASKED = RerankRequest(("bal den", "fir"), ("gos", "kal len mir"))


@pytest.fixture
def told() -> RerankRequest:
    return dataclasses.replace(ASKED, about="nur")


def test_a_decoder_reads_it_as_one_item_more(tiny_llama, told):
    reranker = untrained_llama(tiny_llama)
    as_item = dataclasses.replace(ASKED, history=(told.about, *ASKED.history))
    scores, without, equal = (reranker.score([one]).scores[0] for one in (told, ASKED, as_item))
    assert scores == pytest.approx(equal, abs=1e-6)
    assert not np.allclose(scores, without, atol=1e-4)


def test_it_is_no_item_of_the_history(tiny_bert, told):
    reranker = untrained(tiny_bert)
    prompt, without = reranker.prompt_of(told), reranker.prompt_of(ASKED)
    words = len(prompt.prefix) - len(without.prefix)
    assert words == 2  # one word and its end mark
    assert prompt.ages.tolist() == [NO_AGE] * words + without.ages.tolist()
    assert prompt.prefix[1 + words :].tolist() == without.prefix[1:].tolist()


def test_a_small_budget_drops_items_before_it(tiny_bert, told):
    reranker = shaken(tiny_bert)
    shorter = dataclasses.replace(told, history=told.history[-1:])
    limit = reranker.prompt_of(shorter).tokens
    found = reranker.score([dataclasses.replace(told, limits={Cap.TOKENS: limit})])
    assert found.prompt_tokens == [limit]
    assert found.scores[0] == pytest.approx(reranker.score([shorter]).scores[0], abs=1e-6)


def test_words_of_a_history_reach_the_request():
    histories = Histories.of([[0], [1]], about=["young", "old"])
    candidates = Candidates(np.array([[1], [0]]), np.ones((2, 1), dtype=np.float32))
    assert [request_of(["a", "b"], candidates, histories, place).about for place in (0, 1)] == ["young", "old"]


def test_lists_from_inside_a_history_keep_its_words():
    histories = Histories.of([[0, 1, 2], [3], [1, 2]], about=["a", "b", "c"])
    lists = earlier_positions(list("vwxyz"), histories, per_user=2, rng=np.random.default_rng(0))
    assert lists.histories.about.tolist() == ["a", "a", "c"]
    assert lists.after_last_item().histories.about.tolist() == ["a", "a", "c"]


def users_rule(examples: int, *, seed: int) -> TrainingLists:
    """Planted: the word about a user decides the first word of the next item; the history is noise."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(KINDS, size=examples)
    noise = rng.choice(WORDS[20:], size=(examples, 2))
    texts = [
        *noise[:, 0].tolist(),
        *(f"{WORDS[8 + kind]} {word}" for kind, word in zip(kinds, noise[:, 1], strict=True)),
    ]
    histories = Histories.of([[row] for row in range(examples)], about=[WORDS[kind] for kind in kinds])
    none = np.empty((examples, 0), dtype=np.int64)
    return TrainingLists(texts, histories, np.arange(examples, 2 * examples), none, np.repeat([0.0, 1.0], examples))


def test_a_rule_that_only_these_words_show_is_learnt(tiny_bert):
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=8, alpha=16), "head_width": 64})
    reranker = untrained(tiny_bert, config=config)
    record = train_reranker(
        reranker,
        users_rule(1000, seed=0),
        validation=users_rule(100, seed=9),
        config=FAST.model_copy(update=PLANTED),
        log=quiet,
    )
    # A perfect reader still guesses among the target and those of 7 negatives that begin like it.
    alike = [math.comb(7, n) * (1 / KINDS) ** n * (1 - 1 / KINDS) ** (7 - n) for n in range(8)]
    ideal = sum(chance * math.log(1 + n) for n, chance in enumerate(alike))
    assert record.before.loss > 0.9 * math.log(8)
    assert record.best.loss < ideal + 0.3
