"""Words for what retrieval knows: their codes by hand, whom they concern, and that training hears them."""

from pathlib import Path

import numpy as np
import pytest

from data.schema import NO_ITEM, TRANSITIONS, Candidates, Histories, Holdout
from rerank.base import RerankRequest
from rerank.fit import next_item_lists, request_of
from rerank.hints import NO_HINT, WORDS, Hint, hint_codes, led
from rerank.lists import draw_list
from rerank.train import train_reranker
from rerank.train_config import Precision, RerankTrainConfig
from tests.rerank import tiny_bert as bert

HINTED = bert.CONFIG.model_copy(update={"prompt": bert.PROMPT.model_copy(update={"hint": Hint.RANK})})


def candidates(rows: list[list[int]], followed: list[list[float]] | None = None) -> Candidates:
    found = np.array(rows)
    sources = {} if followed is None else {TRANSITIONS: np.array(followed, dtype=np.float32)}
    score = np.where(found == NO_ITEM, -np.inf, -np.arange(found.shape[1])).astype(np.float32)
    return Candidates(found, score, sources)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of ranks are some that the tiny model's tokenizer knows."""
    monkeypatch.setitem(WORDS, Hint.RANK, tuple(bert.WORDS[56:60]))


def test_ranks_are_told_in_four_words() -> None:
    codes = hint_codes(candidates([list(range(24))]))[Hint.RANK][0]
    told = [WORDS[Hint.RANK][code] for code in codes]
    assert told == 3 * ["first"] + 7 * ["high"] + 10 * ["middle"] + 4 * ["low"]


def test_transitions_are_told_by_their_share_of_the_largest_and_nothing_where_nothing_is_known() -> None:
    rows = [[5, 6, 7, 8, 9, NO_ITEM]]
    codes = hint_codes(candidates(rows, [[0.0, 0.01, 0.2, 1.0, 2.0, 9.0]]))[Hint.TRANSITIONS][0]
    assert [WORDS[Hint.TRANSITIONS][code] for code in codes[:5]] == ["never", "rarely", "sometimes", "often", "often"]
    assert codes[5] == NO_HINT
    assert (hint_codes(candidates(rows))[Hint.TRANSITIONS] == NO_HINT).all()
    assert (hint_codes(candidates(rows, [[0.0] * 6]))[Hint.TRANSITIONS][0, :5] == 0).all()


def test_a_request_tells_what_it_knows_and_only_a_prompt_that_wants_it_is_led(tiny_bert: Path, spoken: None) -> None:
    rows = [[3, NO_ITEM, 1], [2, 0, NO_ITEM]]
    texts = ["bal", "den", "fir", "gos"]
    request = request_of(texts, candidates(rows), Histories.of([[0], [1]]), 1)
    assert request.hints == {Hint.RANK: [0, 0], Hint.TRANSITIONS: [NO_HINT, NO_HINT]}
    plain, hinted = bert.shaken(tiny_bert), bert.shaken(tiny_bert, config=HINTED)
    lengths = [[len(one) for one in made.prompt_of(request).candidates] for made in (plain, hinted)]
    assert lengths == [[2, 2], [4, 4]]  # the word and its colon
    words = bert.WORDS[56]
    alike = RerankRequest(request.history, tuple(f"{words}: {text}" for text in request.candidates))
    np.testing.assert_allclose(hinted.score([request]).scores[0], plain.score([alike]).scores[0], atol=1e-6)


def test_a_hint_moves_its_own_candidate_alone_and_goes_where_it_goes(tiny_bert: Path, spoken: None) -> None:
    hinted = bert.shaken(tiny_bert, config=HINTED)

    def scores(texts: tuple[str, ...], codes: list[int]) -> np.ndarray:
        return hinted.score([RerankRequest(("bal",), texts, hints={Hint.RANK: codes})]).scores[0]

    before = scores(("den", "fir", "gos"), [0, 1, 2])
    after = scores(("den", "fir", "gos"), [0, 3, 2])
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-6)
    assert abs(after[1] - before[1]) > 1e-4
    np.testing.assert_allclose(scores(("gos", "den", "fir"), [2, 0, 1]), before[[2, 0, 1]], atol=1e-6)


def test_lists_know_the_hints_of_retrieved_items_and_of_no_others() -> None:
    asked = Holdout("validation", np.array([0]), Histories.of([[9]]), Histories.of([[7]]))
    lists = next_item_lists([""] * 10, asked, candidates([[5, 7, 6, 4]]), None, hint=Hint.RANK)
    drawn = draw_list(lists, 0, size=8, hard_share=1.0, rng=np.random.default_rng(0))
    found = dict(zip(drawn.item_rows.tolist(), drawn.hints.tolist(), strict=True))
    assert {row: found[row] for row in (5, 7, 6, 4)} == {5: 0, 7: 0, 6: 0, 4: 1}
    assert {found[row] for row in found.keys() - {5, 7, 6, 4}} == {NO_HINT}
    scored = next_item_lists([""] * 10, asked, candidates([[5, 7, 6, 4]]), None, with_prior=True, hint=Hint.RANK)
    drawn = draw_list(scored, 0, size=8, hard_share=1.0, rng=np.random.default_rng(0))
    assert dict(zip(drawn.item_rows.tolist(), drawn.hints.tolist(), strict=True)) == {5: 0, 7: 0, 6: 0, 4: 1}
    assert next_item_lists([""] * 10, asked, candidates([[5]]), None).hints is None


def test_training_hears_what_only_the_hints_tell(tiny_bert: Path, spoken: None) -> None:
    """Planted: texts are noise, and the item taken is always among the first three places."""
    rng = np.random.default_rng(0)
    texts = [f"{rng.choice(bert.WORDS[:50])} {rng.choice(bert.WORDS[:50])}" for _ in range(40)]
    rows = np.array([rng.permutation(np.arange(1, 40))[:12] for _ in range(300)])
    targets = [[int(row[rng.integers(3)])] for row in rows]
    asked = Holdout("validation", np.arange(300), Histories.of([[0]] * 300), Histories.of(targets))
    lists = next_item_lists(texts, asked, candidates(rows.tolist()), None, hint=Hint.RANK)
    made = bert.untrained(tiny_bert, config=HINTED)
    config = RerankTrainConfig(
        epochs=3,
        users_per_batch=16,
        list_size=8,
        hard_share_start=1.0,
        hard_share_end=1.0,
        learning_rate=5e-3,
        head_learning_rate=1e-2,
        precision=Precision.FLOAT32,
        budget_minutes=60,
    )
    train_reranker(made, lists, validation=None, config=config, log=lambda entry: None)
    found = made.score([request_of(texts, candidates(rows.tolist()), asked.histories, place) for place in range(20)])
    assert np.mean([scores[:3].min() > scores[3:].max() for scores in found.scores]) > 0.9


def test_led_texts_are_texts_behind_their_words() -> None:
    assert led(["a", "b"], Hint.RANK, [1, NO_HINT]) == ["high: a", "b"]
    assert led(["a"], Hint.NONE, [1]) == led(["a"], Hint.RANK, None) == ["a"]
