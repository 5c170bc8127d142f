from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from retrieval import unpadded
from retrieval.encode import EncoderConfig, encode_texts
from retrieval.finetune import FinetuneConfig, FinetuneMethod, add_adapter, merge_adapter
from retrieval.unpadded import UnpaddedBert, runs_unpadded
from store.assets import resolve_model
from store.errors import BadInput, MissingStep
from tests.rerank.tiny_bert import WORDS, write_tiny_bert

READING = EncoderConfig(max_tokens=16)
# Lengths from one word to far beyond max_seq_length, and a word that the vocabulary lacks.
TEXTS = [
    "zzz",
    *(" ".join(WORDS[(row * 7 + word) % len(WORDS)] for word in range(1 + row % 25)) for row in range(60)),
]


def write_tiny_roberta(folder: Path) -> Path:
    write_tiny_bert(folder)
    torch.manual_seed(1)
    size = len(AutoTokenizer.from_pretrained(str(folder)))
    config = RobertaConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(params=[write_tiny_bert, write_tiny_roberta], ids=["bert", "roberta"])
def encoder(request: Any, tmp_path: Path) -> Any:
    return assembled(request.param(tmp_path), Pooling(32), Normalize())


def assembled(folder: Path, *modules: Any, **options: Any) -> Any:
    made = SentenceTransformer(modules=[Transformer(str(folder)), *modules], device="cpu", **options)
    made.max_seq_length = 16
    return made


def expected(encoder: Any) -> np.ndarray:
    vectors = encoder.encode(TEXTS, batch_size=8, show_progress_bar=False).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("tokens", [1, 5, 40, 512])
def test_equals_the_model_s_own_encode_for_any_batch(encoder, monkeypatch, tokens):
    monkeypatch.setattr(unpadded, "CPU_TOKENS", tokens)
    assert runs_unpadded(encoder)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), expected(encoder), atol=2e-6)


def test_several_threads_give_what_one_gives_and_leave_torch_as_it_was(encoder, monkeypatch):
    monkeypatch.setattr(unpadded, "CPU_TOKENS", 40)
    alone = UnpaddedBert(encoder).encode(TEXTS)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(UnpaddedBert(encoder).encode(TEXTS), alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_huge_attention_scores_take_the_safe_way(encoder):
    with torch.no_grad():
        for layer in encoder[0].model.encoder.layer:
            layer.attention.self.query.weight *= 300
    found = encode_texts(encoder, TEXTS, READING)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected(encoder), atol=1e-4)


def test_bfloat16_agrees_with_float32(encoder):
    exact = expected(encoder)
    encoder.bfloat16()
    assert runs_unpadded(encoder)
    assert ((encode_texts(encoder, TEXTS, READING) * exact).sum(axis=1) > 0.999).all()


def test_tuned_weights_are_the_ones_that_read(encoder):
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.LORA, lora_rank=4))
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    assert not runs_unpadded(encoder)
    tuned = expected(encoder)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), tuned, atol=2e-6)
    merge_adapter(encoder)
    assert runs_unpadded(encoder)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), tuned, atol=1e-5)


def test_dropout_is_off_even_where_the_encoder_was_left_training(encoder):
    exact = expected(encoder)
    encoder.train()
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), exact, atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: assembled(folder, Pooling(32, pooling_mode="cls")),
        lambda folder: assembled(folder, Pooling(32), Dense(32, 8)),
        lambda folder: assembled(folder, Pooling(32), prompts={"q": "bal den "}, default_prompt_name="q"),
        lambda folder: assembled(folder, Pooling(32), truncate_dim=8),
    ],
    ids=["cls", "dense", "prompt", "truncated"],
)
def test_other_models_are_read_their_own_way(tmp_path, change):
    encoder = change(write_tiny_bert(tmp_path))
    assert not runs_unpadded(encoder)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), expected(encoder), atol=2e-6)


def test_batches_hold_every_text_once_and_no_more_tokens_than_allowed():
    lengths = np.random.default_rng(0).integers(1, 30, size=200)
    batches = list(unpadded._batches(lengths, 64))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(200))
    for batch in batches:
        assert lengths[batch.rows].sum() <= 64
        assert [length for n, length in batch.groups for _ in range(n)] == lengths[batch.rows].tolist()


def test_a_text_without_a_token_is_named(encoder):
    with pytest.raises(BadInput, match="no usable vector for the text ''"):
        encode_texts(encoder, ["", *TEXTS], READING)


@pytest.mark.slow
def test_minilm_reads_as_by_default() -> None:
    try:
        path = resolve_model("minilm-l6").path_or_id
    except MissingStep as missing:
        pytest.skip(str(missing))
    texts = [
        "Toy Story (1995) | Animation, Children's, Comedy",
        "Alien",
        *(f"Film {n} " * (1 + n % 9) for n in range(40)),
    ]
    default = SentenceTransformer(path, device="cpu")
    exact = default.encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(encode_texts(default, texts, EncoderConfig()), exact, atol=2e-6)
    halved = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    assert ((encode_texts(halved, texts, EncoderConfig()) * exact).sum(axis=1) >= 0.999).all()
