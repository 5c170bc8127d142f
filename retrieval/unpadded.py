"""BERT over many texts at once without a single padding token.

The tokens of some texts stand in one row (T, D): linear maps, norms and activations see no padding, and
attention runs over groups of texts of equal length, so it needs no mask. Query, key and value are one product.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.schema import Scores

CPU_TOKENS = 512
"""Tokens in one pass on a processor: with more, activations leave the cache and products lose a fifth."""
GPU_TOKENS = 32_768
"""Tokens in one pass on a GPU, which wants large products."""
SAFE_SCORE = 60.0
"""Attention scores within ±60 need no maximum taken off before the exponential: sums stay in float32's range."""

_FAMILY = {"BertModel", "RobertaModel", "XLMRobertaModel"}
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}

Map = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) of a linear map; scale and shift (D,) of a norm."""


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Map
    mixed: Map
    mixed_norm: Map
    wide: Map
    narrow: Map
    narrow_norm: Map


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of texts, longest first, and how many texts of which length follow one another."""

    rows: np.ndarray
    groups: tuple[tuple[int, int], ...]


class UnpaddedBert:
    """The mean token vector of BERT, RoBERTa or XLM-RoBERTa, from weights shared with the encoder.

    Query, key and value weights are copied into one; an instance is as old as the encoder's weights were then.
    """

    def __init__(self, encoder: Any) -> None:
        model = encoder[0].model
        embeddings, config = model.embeddings, model.config
        self._encoder = encoder
        self._heads: int = config.num_attention_heads
        self._eps: float = config.layer_norm_eps
        self._words: Tensor = embeddings.word_embeddings.weight
        # Single texts are all of type 0, so the type's vector goes with the position's.
        self._places: Tensor = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        # RoBERTa counts positions from behind the padding token's id.
        self._first_place: int = 0 if type(model).__name__ == "BertModel" else embeddings.padding_idx + 1
        self._norm = _map(embeddings.LayerNorm)
        self._layers = [_layer(layer) for layer in model.encoder.layer]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Scores:
        """(n, D) float32 mean token vectors, not of length 1, in the order of the texts; 0 for a text of no tokens."""
        features = self._encoder.preprocess(list(texts))
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        lengths = mask.sum(dim=1).numpy()
        cuda = self._words.is_cuda
        batches = list(_batches(lengths, GPU_TOKENS if cuda else CPU_TOKENS))
        found = np.zeros((len(texts), self._words.shape[1]), dtype=np.float32)

        def run(batch: _Batch) -> None:
            rows = torch.from_numpy(batch.rows)
            # Inference mode belongs to a thread.
            with torch.inference_mode():
                found[batch.rows] = self._forward(ids[rows][mask[rows]], batch.groups).cpu().numpy()

        threads = 1 if cuda else min(torch.get_num_threads(), len(batches))
        if threads == 1:
            for batch in batches:
                run(batch)
        else:
            _on_threads(run, batches, threads)
        return found

    def _forward(self, ids: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """Ids (T,) of the groups' texts in their order → (n, D) float32."""
        device = self._words.device
        places = torch.cat([torch.arange(length).repeat(n) for n, length in groups]) + self._first_place
        hidden = F.embedding(ids.to(device), self._words) + F.embedding(places.to(device), self._places)
        hidden = self._normed(hidden, self._norm)  # (T, D)
        for layer in self._layers:
            mixed = F.linear(self._attention(F.linear(hidden, *layer.qkv), groups), *layer.mixed)
            hidden = self._normed(mixed.add_(hidden), layer.mixed_norm)
            narrow = F.linear(F.gelu(F.linear(hidden, *layer.wide)), *layer.narrow)
            hidden = self._normed(narrow.add_(hidden), layer.narrow_norm)
        parts = torch.split(hidden.float(), [n * length for n, length in groups])
        return torch.cat([part.view(n, length, -1).mean(1) for part, (n, length) in zip(parts, groups, strict=True)])

    def _normed(self, hidden: Tensor, norm: Map) -> Tensor:
        return F.layer_norm(hidden, (hidden.shape[1],), *norm, self._eps)

    def _attention(self, qkv: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """(T, 3 D) → (T, D), each text by itself; the query is scaled already."""
        parts = []
        slabs = torch.split(qkv, [n * length for n, length in groups])
        for part, (n, length) in zip(slabs, groups, strict=True):
            heads = part.view(n, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)  # (3, n, H, L, d)
            query, key, value = heads
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0) if part.is_cuda else _attend(heads)
            parts.append(mixed.transpose(1, 2).reshape(n * length, -1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def runs_unpadded(encoder: Any) -> bool:
    """Whether UnpaddedBert computes what `encoder.encode` does: a plain BERT, the mean of its tokens, no prompt.

    Anything between, such as a LoRA adapter, a Dense module or another activation, says no.
    """
    try:
        names = [type(module).__name__ for module in encoder]
        transformer, pooling = encoder[0], encoder[1]
        model = transformer.model
    except (TypeError, AttributeError, IndexError, KeyError):
        return False
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return False
    plain = (
        pooling.pooling_mode == "mean"
        and encoder.default_prompt_name is None
        and encoder.truncate_dim is None
        and set(transformer.modality_config) == {"text"}
        and encoder.tokenizer is not None
        and encoder.tokenizer.padding_side == "right"
        and set(encoder.preprocess(["a"])) - {"modality"} <= _INPUTS
    )
    return plain and _is_plain_bert(model)


def _is_plain_bert(model: Any) -> bool:
    config = model.config
    return (
        type(model).__name__ in _FAMILY
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and not config.add_cross_attention
        # Adapters and quantised layers stand in the place of a Linear, and hooks change what one gives.
        and all(type(layer) is nn.Linear for layer in model.encoder.modules() if hasattr(layer, "in_features"))
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    )


def _layer(layer: Any) -> _Layer:
    attention = layer.attention.self
    maps = (attention.query, attention.key, attention.value)
    weight = torch.cat([part.weight for part in maps])
    bias = torch.cat([part.bias for part in maps])
    width = len(attention.query.weight)
    weight[:width] *= attention.scaling
    bias[:width] *= attention.scaling
    return _Layer(
        qkv=(weight, bias),
        mixed=_map(layer.attention.output.dense),
        mixed_norm=_map(layer.attention.output.LayerNorm),
        wide=_map(layer.intermediate.dense),
        narrow=_map(layer.output.dense),
        narrow_norm=_map(layer.output.LayerNorm),
    )


def _map(module: Any) -> Map:
    return module.weight, module.bias


def _attend(heads: Tensor) -> Tensor:
    """(3, n, H, L, d) → (n, H, L, d): for short texts three times as fast as torch's attention on a processor."""
    n, count, length, width = heads.shape[1:]
    query, key, value = heads.reshape(3, n * count, length, width)
    score = torch.bmm(query, key.transpose(1, 2))  # (n H, L, L)
    low, high = torch.aminmax(score)
    # torch's softmax is slow over rows shorter than a vector register; the bare exponential has no rows.
    if low.item() > -SAFE_SCORE and high.item() < SAFE_SCORE:
        weight = score.exp_()
        mixed = torch.bmm(weight, value) / weight.sum(dim=-1, keepdim=True)
    else:
        mixed = torch.bmm(torch.softmax(score, dim=-1), value)
    return mixed.view(n, count, length, width)


def _batches(lengths: np.ndarray, budget: int) -> Iterator[_Batch]:
    """Texts by falling length, cut where `budget` tokens are full; a longer text is a batch of its own.

    Texts without a token are in none.
    """
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        full = np.cumsum(lengths[order[start : start + budget]])
        stop = start + max(1, int(np.searchsorted(full, budget, side="right")))
        rows = order[start:stop]
        found, counts = np.unique(-lengths[rows], return_counts=True)
        yield _Batch(rows, tuple((int(n), int(-length)) for n, length in zip(counts, found, strict=True)))
        start = stop


def _on_threads(run: Any, batches: Sequence[_Batch], threads: int) -> None:
    """One batch a thread scales better than many threads a batch: small products and norms do not divide well."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(run, batches):
                pass
    finally:
        torch.set_num_threads(before)
