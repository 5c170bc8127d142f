"""A random BERT of a few thousand weights over a vocabulary of plain words, saved as a model folder."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from rerank.adapters import AdapterConfig
from rerank.card import BaseModelName
from rerank.encoder import EncoderConfig, EncoderReranker
from rerank.prompt import PromptConfig

BASE = BaseModelName("tiny", "fingerprint-of-tiny")
WORDS = [f"{first}{last}" for first in "bdfgklmnprst" for last in ("al", "en", "ir", "os", "um")]
PROMPT = PromptConfig(
    max_history_items=6, history_block_items=2, max_history_tokens=40, max_item_tokens=8, max_candidate_tokens=8
)
CONFIG = EncoderConfig(prompt=PROMPT, adapter=AdapterConfig(rank=4, alpha=8), head_width=16)


def write_tiny_bert(folder: Path, *, dimension: int = 32, layers: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: place for place, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(str(folder))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=dimension,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * dimension,
        max_position_embeddings=64,
        initializer_range=0.3,  # at the usual .02 attention is flat and a wrong mask would hardly show
    )
    BertModel(config).save_pretrained(str(folder))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder


def untrained(folder: Path, *, config: EncoderConfig = CONFIG, seed: int = 0) -> EncoderReranker:
    return EncoderReranker.create(folder, base=BASE, config=config, seed=seed)


def shaken(folder: Path, *, config: EncoderConfig = CONFIG) -> EncoderReranker:
    """As if trained."""
    return move(untrained(folder, config=config))


def move(reranker: Any) -> Any:
    """Every trainable weight is moved, so that adapter and head both count."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in reranker.trainable().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return reranker
