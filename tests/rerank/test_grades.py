"""Ratings: the scale of a log, lists of rated items, the loss written out, and a planted taste that only texts show."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.schema import NO_ITEM, Histories
from rerank.adapters import AdapterConfig
from rerank.base import RerankRequest
from rerank.encoder import EncoderReranker
from rerank.export import Shape, export_reranker
from rerank.figures import ListFigures
from rerank.fit import RerankerConfig
from rerank.grades import graded_figures, rated_lists, rating_scale
from rerank.hints import Hint
from rerank.lists import DrawnList, TrainingLists, draw_list
from rerank.objective import Objective, graded_loss
from rerank.packing import pack
from rerank.shared_prefix import Row
from rerank.train import train_reranker
from rerank.train_config import Precision, RerankTrainConfig
from store.errors import BadInput
from tests.rerank import tiny_bert as bert
from tests.rerank import tiny_llama as llama
from tests.rerank.tiny_bert import WORDS

SCALE = (1.0, 2.0, 3.0, 4.0, 5.0)
GRADED = bert.CONFIG.model_copy(update={"grades": SCALE, "adapter": AdapterConfig(rank=8, alpha=16), "head_width": 64})
REQUEST = RerankRequest(("bal den", "fir"), ("gos", "kal len mir", "bal"))


def rated(lists: list[list[int]], ratings: list[float]) -> Histories:
    return replace(Histories.of(lists), ratings=np.array(ratings, dtype=np.float32))


def test_a_scale_is_what_the_log_holds_or_what_is_stated() -> None:
    log = rated([[0, 1], [2, 3]], [4.5, math.nan, 1, 4.5])
    assert rating_scale(log) == (1.0, 4.5)
    assert rating_scale(log, (1.0, 3.0, 4.5)) == (1.0, 3.0, 4.5)
    with pytest.raises(BadInput, match=r"4\.5.*not in grades \[1\.0, 2\.0\]"):
        rating_scale(log, (1.0, 2.0))


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (Histories.of([[0, 1]]), "has no ratings.*--map rating=COLUMN"),
        (rated([[0]], [math.nan]), "has no ratings"),
        (rated([[0, 1]], [5, 5]), "take 1 different values, where a scale has 2 to 20"),
        (rated([list(range(30))], list(range(30))), "take 30 different values"),
    ],
)
def test_a_log_without_a_scale_is_refused(log: Histories, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        rating_scale(log)


def test_lists_are_rated_items_behind_what_came_before_them() -> None:
    log = rated([[7, 8, 9, 6, 5], [3], [4, 2]], [1, 2, math.nan, 4, 5, 3, 1, math.nan])
    lists = rated_lists(list("abcdefghij"), log, (1.0, 2.0, 4.0, 5.0), size=3, per_user=9, rng=np.random.default_rng(0))
    found = {
        tuple(lists.histories[place].tolist()): (
            draw_list(lists, place, size=3, hard_share=0, rng=np.random.default_rng(0))
        )
        for place in range(len(lists))
    }
    wanted = {(7,): ([8, 6], [1, 2]), (7, 8): ([6, 5], [2, 3]), (7, 8, 9): ([6, 5], [2, 3]), (7, 8, 9, 6): ([5], [3])}
    assert {key: (made.item_rows.tolist(), made.grades.tolist()) for key, made in found.items()} == wanted
    few = rated_lists(list("abcdefghij"), log, (1.0, 2.0, 4.0, 5.0), size=3, per_user=1, rng=np.random.default_rng(0))
    assert len(few) == 1


def test_the_loss_is_the_softmax_over_grades_averaged_over_items_then_lists() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, -0.5, 0.0], [0.0, 0.0, 3.0]])
    drawn = [
        DrawnList(np.arange(2), None, grades=np.array([1, 0])),
        DrawnList(np.arange(1), None, grades=np.array([2])),
    ]

    def nats(row: list[float], grade: int) -> float:
        return math.log(sum(map(math.exp, row))) - row[grade]

    wanted = ((nats([1, 2, 0], 1) + nats([0.5, -0.5, 0], 0)) / 2 + nats([0, 0, 3], 2)) / 2
    assert graded_loss(logits, drawn).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_score_is_the_rating_to_be_expected(kind: str, tiny_bert: Path, tiny_llama: Path) -> None:
    config = llama.CONFIG.model_copy(update={"grades": SCALE})
    made = bert.shaken(tiny_bert, config=GRADED) if kind == "encoder" else llama.shaken(tiny_llama, config=config)
    with torch.inference_mode():
        logits = made.grade_logits([made.prompt_of(REQUEST)]).double().numpy()
    assert logits.shape == (3, 5)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(made.score([REQUEST]).scores[0], chances @ SCALE, atol=1e-5)


def test_a_decoder_is_asked_for_a_number_and_its_logits_are_those_of_the_numbers(tiny_llama: Path) -> None:
    made = llama.shaken(tiny_llama, config=llama.CONFIG.model_copy(update={"grades": SCALE}))
    prompt, tokenizer = made.prompt_of(REQUEST), made.prompter.tokenizer
    words = "".join(tokenizer.convert_ids_to_tokens([*prompt.prefix.tolist(), *prompt.candidates[1].tolist()]))
    assert words.endswith("How would this person rate the next one, from 1 to 5?\n- kal len mir\nRating:\n")
    packed = pack([prompt])
    with torch.inference_mode():
        states = made.states(packed, Row(packed.spans, causal=True))
        output = made.backbone.get_output_embeddings().weight
        numbers = tokenizer.convert_tokens_to_ids(["1", "2", "3", "4", "5"])
        wanted = states[packed.candidate_ends] @ output[numbers].T
        np.testing.assert_allclose(made.grade_logits([prompt]), wanted, atol=1e-5)


def test_untrained_an_encoder_ranks_as_without_grades(tiny_bert: Path) -> None:
    plain, graded = bert.untrained(tiny_bert), bert.untrained(tiny_bert, config=GRADED)
    orders = [np.argsort(one.score([REQUEST]).scores[0]).tolist() for one in (plain, graded)]
    assert orders[0] == orders[1]


def test_a_tokenizer_without_a_number_of_one_token_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(BadInput, match="no single token for '6'"):
        llama.untrained(tiny_llama, config=llama.CONFIG.model_copy(update={"grades": (*SCALE, 6.0)}))


def test_figures_are_those_of_loops(tiny_bert: Path) -> None:
    made = bert.shaken(tiny_bert, config=GRADED)
    prompts = [made.prompt_of(REQUEST)] * 2
    drawn = [DrawnList(np.arange(3), None, grades=np.array(grades)) for grades in ([0, 4, 2], [1, 1, 1])]
    with torch.inference_mode():
        nats = -made.grade_logits(prompts[:1]).log_softmax(dim=1).numpy()
    order = np.argsort(-made.score([REQUEST]).scores[0])
    gain = sum([0, 4, 2][item] / math.log2(place + 2) for place, item in enumerate(order))
    found = graded_figures(made, prompts, drawn)
    assert found.loss == pytest.approx(np.mean([np.mean([nats[0, 0], nats[1, 4], nats[2, 2]]), nats[:, 1].mean()]))
    assert found.ndcg_10 == pytest.approx(gain / (4 + 2 / math.log2(3)))


def taste(users: int, *, seed: int) -> TrainingLists:
    """Planted: a word of the history tells whether a user loves or hates what begins with one of ten others.

    Every item is one user's own, so that no count over ids can know; lovers give 5 to the first five and 1 to the
    rest, haters the contrary.
    """
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    lists: list[list[int]] = []
    ratings: list[float] = []
    for _ in range(users):
        loves = bool(rng.integers(2))
        firsts = rng.permutation(10)[:4]
        start = len(texts)
        texts += [f"{WORDS[50 + loves]} {rng.choice(WORDS[20:50])}"]
        texts += [f"{WORDS[first]} {rng.choice(WORDS[20:50])}" for first in firsts]
        lists.append(list(range(start, start + 5)))
        ratings += [math.nan, *(5.0 if (first < 5) == loves else 1.0 for first in firsts)]
    return rated_lists(texts, rated(lists, ratings), SCALE, size=4, per_user=1, rng=FirstPlaces())


class FirstPlaces:
    """Chance that always begins behind the first item, which tells the taste."""

    def permutation(self, places: np.ndarray) -> np.ndarray:
        return places


def test_a_planted_taste_is_learnt_and_comes_back_from_its_folder(tiny_bert: Path, tmp_path: Path) -> None:
    made = bert.untrained(tiny_bert, config=GRADED)
    record = train_reranker(
        made,
        taste(800, seed=0),
        validation=taste(100, seed=9),
        config=RerankTrainConfig(
            epochs=3,
            users_per_batch=16,
            objective=Objective.GRADED,
            learning_rate=5e-3,
            head_learning_rate=1e-2,
            validate_every_steps=50,
            precision=Precision.FLOAT32,
            budget_minutes=60,
        ),
        log=lambda entry: None,
    )
    assert isinstance(record.best, ListFigures)
    assert record.before.loss > 0.9 * math.log(2)
    assert record.best.loss < 0.25
    lover, hater = (f"{WORDS[place]} {WORDS[30]}" for place in (51, 50))
    candidates = tuple(f"{WORDS[first]} {WORDS[40]}" for first in range(10))
    asked = [RerankRequest((one,), candidates) for one in (lover, hater)]
    loved, hated = made.score(asked).scores
    assert loved[:5].min() > 4 > 2 > loved[5:].max()
    assert hated[5:].min() > 4 > 2 > hated[:5].max()
    made.save(tmp_path / "saved")
    again = EncoderReranker.load(tmp_path / "saved", model_dir=tiny_bert, model_fingerprint=bert.BASE.fingerprint)
    np.testing.assert_array_equal(again.score(asked).scores[0], loved)


def test_settings_that_graded_cannot_use_are_refused() -> None:
    graded = {"objective": "graded"}
    with pytest.raises(ValueError, match="adds nothing: teacher, earlier_targets; unset"):
        RerankerConfig(train=graded, teacher="0123", earlier_targets=2)
    with pytest.raises(ValueError, match=r"adds nothing: prompt\.hint; unset"):
        RerankerConfig(train=graded, encoder={"prompt": {"hint": Hint.RANK}})
    with pytest.raises(ValueError, match=r"grades are \[2\.0, 1\.0\]"):
        RerankerConfig(encoder={"grades": (2.0, 1.0)})


def test_an_answer_of_ratings_has_no_cross_encoder(tiny_llama: Path, tmp_path: Path) -> None:
    made = llama.shaken(tiny_llama, config=llama.CONFIG.model_copy(update={"grades": SCALE}))
    with pytest.raises(BadInput, match=r"yes or no.*expects ratings"):
        export_reranker(made, tmp_path / "out", Shape.CROSS_ENCODER)
    export_reranker(made, tmp_path / "merged", Shape.MERGED)


def test_a_padded_place_is_no_item() -> None:
    lists = taste(3, seed=0)
    assert (lists.candidates[:, 4:] == NO_ITEM).all()
    assert lists.grades is not None
    assert set(lists.grades[lists.candidates != NO_ITEM].tolist()) <= {0, 4}
