"""A random Llama of a few thousand weights over a vocabulary of plain words, saved as a model folder."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rerank.adapters import AdapterConfig
from rerank.card import BaseModelName
from rerank.decoder import DecoderConfig, DecoderReranker
from rerank.prompt import ANSWER, BULLET, GRADED_QUESTION, OPENING, QUESTION, RATING, PromptConfig
from tests.rerank.tiny_bert import WORDS, move

BASE = BaseModelName("tiny-llama", "fingerprint-of-tiny-llama")
PROMPT = PromptConfig(
    max_history_items=6, history_block_items=2, max_history_tokens=80, max_item_tokens=8, max_candidate_tokens=9
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = DecoderConfig(prompt=PROMPT, adapter=AdapterConfig(rank=4, alpha=8, target_modules=TARGETS), prefix_cache_mb=1)


def write_tiny_llama(folder: Path, *, layers: int = 2, seed: int = 0, yes: bool = True) -> Path:
    """Half as many key heads as query heads; words carry their blank, as byte-pair tokenizers have it."""
    torch.manual_seed(seed)
    pieces = Regex(r" ?\w+|\n|[^\w\s]")
    cut = pre_tokenizers.Split(pieces, behavior="isolated")
    texts = (OPENING, QUESTION, BULLET, ANSWER, GRADED_QUESTION.format(grades=5), RATING, "1\n2\n3\n4\n5")
    frame = [piece for text in texts for piece, _ in cut.pre_tokenize_str(text)]
    words = [f"{lead}{word}" for lead in ("", " ") for word in WORDS]
    vocabulary = dict.fromkeys(["<pad>", "<unk>", "<s>", *frame, " yes", " no", *words])
    if not yes:
        del vocabulary[" yes"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = cut
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>"
    ).save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def untrained(folder: Path, *, config: DecoderConfig = CONFIG, seed: int = 0) -> DecoderReranker:
    return DecoderReranker.create(folder, base=BASE, config=config, seed=seed)


def shaken(folder: Path, *, config: DecoderConfig = CONFIG) -> DecoderReranker:
    """As if trained."""
    return move(untrained(folder, config=config))
