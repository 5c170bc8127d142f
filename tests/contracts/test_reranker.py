"""What every Reranker must do; each stands in RERANKERS."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rerank.base import Reranker, RerankRequest
from rerank.kinds import load_reranker
from tests.rerank import tiny_bert, tiny_llama

WRITERS = {tiny_bert: tiny_bert.write_tiny_bert, tiny_llama: tiny_llama.write_tiny_llama}


def reloaded(tiny: ModuleType, folder: Path) -> Reranker:
    tiny.shaken(folder).save(folder.parent / "saved")
    return load_reranker(folder.parent / "saved", model_dir=folder, model_fingerprint=tiny.BASE.fingerprint)


def graded(tiny: ModuleType, folder: Path) -> Reranker:
    config = tiny.CONFIG.model_copy(update={"grades": (1.0, 2.0, 3.5)})
    tiny.shaken(folder, config=config).save(folder.parent / "graded")
    return load_reranker(folder.parent / "graded", model_dir=folder, model_fingerprint=tiny.BASE.fingerprint).merged()


STATES: dict[str, Callable[[Any, Path], Reranker]] = {
    "untrained": lambda tiny, folder: tiny.untrained(folder),
    "trained": lambda tiny, folder: tiny.shaken(folder),
    "merged": lambda tiny, folder: tiny.shaken(folder).merged(),
    "reloaded": reloaded,
    "graded": graded,
}
RERANKERS = {
    f"{name}, {state}": (tiny, make)
    for name, tiny in (("encoder", tiny_bert), ("decoder", tiny_llama))
    for state, make in STATES.items()
}
HISTORY = ("bal den fir", "gos", "kum lal")
CANDIDATES = ("bal den", "mir", "nos pum ral sen", "tir", "gos", "dal dal dal")


@pytest.fixture(scope="module", params=RERANKERS)
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    tiny, make = RERANKERS[request.param]
    return make(tiny, WRITERS[tiny](tmp_path_factory.mktemp("contract") / "tiny"))


def one(reranker: Reranker, history: tuple[str, ...], candidates: tuple[str, ...]) -> np.ndarray:
    return reranker.score([RerankRequest(history, candidates)]).scores[0]


def test_one_finite_float32_score_for_each_candidate_and_a_count_of_tokens(reranker: Reranker) -> None:
    found = reranker.score([RerankRequest(HISTORY, CANDIDATES), RerankRequest(HISTORY[:1], CANDIDATES[:2])])
    assert [scores.shape for scores in found.scores] == [(6,), (2,)]
    assert all(scores.dtype == np.float32 and np.isfinite(scores).all() for scores in found.scores)
    assert found.prompt_tokens[0] > found.prompt_tokens[1] > 0
    assert found.cut_candidates == [0, 0]
    assert len(set(found.scores[0].tolist())) == 6
    assert reranker.name


def test_order_of_the_candidates_does_not_matter(reranker: Reranker) -> None:
    order = np.random.default_rng(0).permutation(len(CANDIDATES))
    moved = one(reranker, HISTORY, tuple(CANDIDATES[place] for place in order))
    np.testing.assert_allclose(moved, one(reranker, HISTORY, CANDIDATES)[order], atol=1e-5, rtol=0)


def test_a_score_does_not_depend_on_the_other_candidates(reranker: Reranker) -> None:
    alone = [one(reranker, HISTORY, (candidate,))[0] for candidate in CANDIDATES]
    np.testing.assert_allclose(one(reranker, HISTORY, CANDIDATES), alone, atol=1e-5, rtol=0)


def test_a_score_does_not_depend_on_the_other_requests(reranker: Reranker) -> None:
    requests = [RerankRequest(HISTORY[:known], CANDIDATES[: 1 + known]) for known in (3, 0, 2, 1, 3)]
    together = reranker.score(requests)
    for request, scores in zip(requests, together.scores, strict=True):
        np.testing.assert_allclose(scores, one(reranker, request.history, request.candidates), atol=1e-5, rtol=0)


def test_the_history_matters(reranker: Reranker) -> None:
    assert np.abs(one(reranker, HISTORY, CANDIDATES) - one(reranker, ("tir nos",), CANDIDATES)).max() > 1e-3


def test_candidates_of_one_text_have_one_score(reranker: Reranker) -> None:
    scores = one(reranker, HISTORY, ("mir", "tir", "mir"))
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)


def test_the_same_question_has_the_same_answer(reranker: Reranker) -> None:
    np.testing.assert_array_equal(one(reranker, HISTORY, CANDIDATES), one(reranker, HISTORY, CANDIDATES))


def test_empty_histories_candidates_texts_and_questions(reranker: Reranker) -> None:
    assert np.isfinite(one(reranker, (), CANDIDATES)).all()
    assert np.isfinite(one(reranker, ("",), ("", "mir"))).all()
    nothing = reranker.score([RerankRequest(HISTORY, ()), RerankRequest((), ("mir",))])
    assert [len(scores) for scores in nothing.scores] == [0, 1]
    assert nothing.prompt_tokens[0] == 0
    assert reranker.score([]).scores == []
