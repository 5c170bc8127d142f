"""Weights of four bits: what is missing is told in one line, and on a GPU an adapter is trained over them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rerank import quantization
from rerank.adapters import AdapterKind
from rerank.base import RerankRequest
from rerank.decoder import DecoderConfig, DecoderReranker
from rerank.export import Shape, export_reranker
from rerank.precision import Precision, at_precision
from rerank.quantization import Quantization, loading_options
from rerank.train import train_reranker
from rerank.train_config import RerankTrainConfig
from store.errors import BadInput, MissingPackage
from tests.rerank.test_train import partner_rule
from tests.rerank.tiny_llama import BASE, CONFIG, untrained

NF4 = CONFIG.model_copy(update={"quantization": Quantization.NF4})


def test_without_a_gpu_one_line_says_so(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"^reranker.decoder.quantization is nf4, which needs an NVIDIA GPU, [^\n]*$"):
        untrained(tiny_llama, config=NF4)


def test_without_bitsandbytes_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"bitsandbytes is not installed: pip install [^\n]*--group qlora$"):
        loading_options(Quantization.NF4)
    assert loading_options(None) == {}


@pytest.mark.parametrize("kind", [AdapterKind.FULL, AdapterKind.LAST_LAYERS])
def test_weights_of_four_bits_are_not_trained(kind: AdapterKind) -> None:
    with pytest.raises(ValueError, match=f"adapter.kind {kind.value} trains the model's own weights"):
        DecoderConfig(quantization="nf4", adapter={"kind": kind})


@pytest.mark.gpu
def test_an_adapter_over_four_bits_learns_and_comes_back(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    made = untrained(tiny_llama, config=NF4)
    request = RerankRequest(("bal den", "fir"), ("gos", "kal len mir", "bal"))
    plain = untrained(tiny_llama).score([request]).scores[0]
    before = made.score([request]).scores[0]
    assert 0 < np.abs(before - plain).max() < 0.5
    config = RerankTrainConfig(epochs=1, users_per_batch=8, list_size=4, learning_rate=5e-3, budget_minutes=5)
    record = train_reranker(made, partner_rule(200, seed=0), validation=None, config=config, log=lambda entry: None)
    assert np.mean(record.losses[-5:]) < np.mean(record.losses[:5])
    after = made.score([request]).scores[0]
    assert np.abs(after - before).max() > 1e-3
    made.save(tmp_path / "saved")
    again = DecoderReranker.load(tmp_path / "saved", model_dir=tiny_llama, model_fingerprint=BASE.fingerprint)
    np.testing.assert_allclose(again.score([request]).scores[0], after, atol=1e-3)
    np.testing.assert_allclose(again.merged().score([request]).scores[0], after, atol=1e-3)
    with pytest.raises(BadInput, match="four bits"):
        at_precision(again, Precision.INT8)
    with pytest.raises(BadInput, match="four bits"):
        export_reranker(again, tmp_path / "out", Shape.MERGED)
