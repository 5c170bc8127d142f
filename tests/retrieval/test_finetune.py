from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn import functional as F

from retrieval.encode import EncoderConfig, centred, encode_texts
from retrieval.finetune import (
    FinetuneConfig,
    FinetuneMethod,
    add_adapter,
    finetune_round,
    merge_adapter,
    table_gradient,
)
from retrieval.loss import full_softmax_loss
from retrieval.towers import TwoTowers
from retrieval.train import Positions, TrainConfig, train_towers
from tests.rerank.tiny_bert import WORDS, write_tiny_bert
from tests.retrieval.toy import SMALL, circle, nobody

N = 12
TEXTS = [f"{WORDS[row]} {WORDS[(7 * row + 3) % 40]}" for row in range(N)]
TRAIN, _ = circle(N, users=20, length=6)
POSITIONS = Positions.of(TRAIN, SMALL.history_items)
ENCODER = EncoderConfig(max_tokens=16)


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    """A sentence-transformer of a few thousand random weights, without dropout at 0.1 being switched off."""
    read = Transformer(str(write_tiny_bert(tmp_path)))
    return SentenceTransformer(modules=[read, Pooling(32)], device="cpu")


def silent(_: dict) -> None:
    pass


def trained_towers(vectors: np.ndarray) -> TwoTowers:
    torch.manual_seed(0)
    model = TwoTowers(torch.from_numpy(centred(vectors)), SMALL)
    train_towers(model, TRAIN, nobody(), config=TrainConfig(epochs=2, batch_size=32), log=silent)
    return model


def embedded(encoder: Any) -> torch.Tensor:
    """(N, E) unit vectors of all texts, with their graph."""
    encoder.eval()
    return F.normalize(encoder(encoder.preprocess(TEXTS))["sentence_embedding"], dim=1)


def full_loss(model: TwoTowers, table: torch.Tensor) -> torch.Tensor:
    """Of every position in one batch."""
    model.eval()
    frozen, model.text = model.text, table
    try:
        logits = model.logits(torch.from_numpy(POSITIONS.context.astype(np.int64)), torch.arange(N))
        return full_softmax_loss(logits, torch.from_numpy(POSITIONS.target))
    finally:
        model.text = frozen


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_table_gradient_through_the_encoder_equals_plain_autograd(encoder, batch_size):
    table = embedded(encoder)
    mean = table.detach().mean(dim=0)
    model = trained_towers(table.detach().numpy())
    weight = encoder[0].auto_model.encoder.layer[0].attention.self.query.weight

    centred_table = F.normalize(table - mean, dim=1)
    (expected,) = torch.autograd.grad(full_loss(model, centred_table), weight, retain_graph=True)
    gradient = table_gradient(model, POSITIONS, warm=np.arange(N), batch_size=batch_size)
    (found,) = torch.autograd.grad((centred_table * gradient).sum(), weight)
    assert expected.abs().max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not model.text.requires_grad


def test_one_step_for_all_chunks_follows_the_plain_gradient(encoder, monkeypatch):
    """Chunk by chunk, the gradient that reaches the weights is that of the whole loss, but for one factor."""
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.FULL))
    table = embedded(encoder)
    mean = table.detach().mean(dim=0)
    model = trained_towers(table.detach().numpy())
    full_loss(model, F.normalize(table - mean, dim=1)).backward()
    plain = torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None])
    encoder.zero_grad(set_to_none=True)

    caught = []

    def catch(self: torch.optim.AdamW) -> None:
        every = [weight for group in self.param_groups for weight in group["params"]]
        caught.append(torch.cat([weight.grad.flatten() for weight in every if weight.grad is not None]))

    monkeypatch.setattr(torch.optim.AdamW, "step", catch)
    gradient = table_gradient(model, POSITIONS, warm=np.arange(N), batch_size=32)
    config = FinetuneConfig(method=FinetuneMethod.FULL, chunk_texts=5, step_every_chunk=False)
    finetune_round(encoder, TEXTS, gradient, mean=mean.numpy(), config=config, log=silent)
    assert len(caught) == 1
    assert float(F.cosine_similarity(caught[0], plain, dim=0)) == pytest.approx(1, abs=1e-5)


def test_items_outside_the_softmax_and_all_contexts_have_no_gradient(encoder):
    model = trained_towers(embedded(encoder).detach().numpy())
    seen = Positions(np.array([[1, 2, -1, -1]], dtype=np.int32), np.array([3]))
    gradient = table_gradient(model, seen, warm=np.array([1, 3, 5]), batch_size=4)
    assert gradient.any(dim=1).nonzero().flatten().tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("method", [FinetuneMethod.LORA, FinetuneMethod.FULL])
@pytest.mark.parametrize("step_every_chunk", [True, False])
def test_tuning_lowers_the_loss(encoder, method, step_every_chunk):
    config = FinetuneConfig(
        method=method, learning_rate=2e-3, chunk_texts=5, step_every_chunk=step_every_chunk, lora_rank=4
    )
    vectors = encode_texts(encoder, TEXTS, ENCODER)
    model = trained_towers(vectors)
    losses = [full_loss(model, model.text).item()]
    add_adapter(encoder, config)
    for _ in range(6):
        gradient = table_gradient(model, POSITIONS, warm=np.arange(N), batch_size=64)
        finetune_round(encoder, TEXTS, gradient, mean=vectors.mean(axis=0), config=config, log=silent)
        vectors = encode_texts(encoder, TEXTS, ENCODER)
        model.text = torch.from_numpy(centred(vectors))
        losses.append(full_loss(model, model.text).item())
    assert losses[-1] < losses[0] - 0.01
    merge_adapter(encoder)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, ENCODER), vectors, atol=1e-5)


def test_a_merged_encoder_is_a_plain_sentence_transformer_in_another_place(encoder, tmp_path):
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.LORA, lora_rank=4))
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    merge_adapter(encoder)
    encoder.save_pretrained(str(tmp_path / "tuned"))
    assert not list((tmp_path / "tuned").rglob("adapter_*"))
    loaded = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    np.testing.assert_allclose(encode_texts(loaded, TEXTS, ENCODER), encode_texts(encoder, TEXTS, ENCODER), atol=1e-5)


def test_lora_leaves_the_base_as_it_was(encoder):
    before = encode_texts(encoder, TEXTS, ENCODER)
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.LORA, lora_rank=4))
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, ENCODER), before, atol=1e-6)
    trainable = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
