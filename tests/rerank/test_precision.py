"""Cheaper arithmetic gives nearly the same scores, in copies that leave the original alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rerank.base import RerankRequest
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from store.errors import BadInput
from tests.rerank import tiny_bert as bert
from tests.rerank import tiny_llama as llama
from tests.rerank.tiny_bert import WORDS

REQUEST = RerankRequest(
    tuple(WORDS[:3]), tuple(f"{one} {two}" for one, two in zip(WORDS[4:12], WORDS[20:28], strict=True))
)


@pytest.fixture(params=["encoder", "decoder"])
def reranker(request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path) -> PackedReranker:
    return bert.shaken(tiny_bert) if request.param == "encoder" else llama.shaken(tiny_llama)


def scores(found: PackedReranker) -> np.ndarray:
    return found.score([REQUEST]).scores[0]


@pytest.mark.parametrize(("precision", "share"), [(Precision.BFLOAT16, 0.1), (Precision.INT8, 0.25)])
def test_scores_agree_and_the_original_stays(reranker: PackedReranker, precision: Precision, share: float) -> None:
    exact = scores(reranker)
    cheap = scores(at_precision(reranker, precision))
    assert cheap.dtype == np.float32
    assert not np.array_equal(cheap, exact)
    assert np.abs(cheap - exact).max() < share * np.ptp(exact)
    assert np.array_equal(scores(reranker), exact)


def test_full_precision_is_the_reranker_itself(reranker: PackedReranker) -> None:
    assert at_precision(reranker, Precision.FLOAT32) is reranker


def test_a_prefix_is_remembered_in_its_own_precision(tiny_llama: Path) -> None:
    cheap = at_precision(llama.shaken(tiny_llama), Precision.BFLOAT16)
    prompt = cheap.prompt_of(REQUEST)
    assert cheap.remembered(prompt) is None
    first = cheap.score([REQUEST])
    assert cheap.remembered(prompt) is not None
    again = cheap.score([REQUEST])
    assert again.cached_tokens == [len(prompt.prefix)]
    assert np.abs(again.scores[0] - first.scores[0]).max() < 0.1 * np.ptp(first.scores[0])


def test_int8_without_kernels_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(BadInput, match="use bfloat16"):
        at_precision(bert.untrained(tiny_bert), Precision.INT8)
