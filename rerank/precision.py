"""In which arithmetic a trained reranker scores: less of it is faster, and moves the scores a little."""

import copy
import warnings
from enum import StrEnum
from typing import Any, TypeVar

import torch

from rerank.adapters import plain
from rerank.packed import PackedReranker
from rerank.quantization import is_quantized
from store.errors import BadInput


class Precision(StrEnum):
    """Type of the matrix products in scoring; the head always counts in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """products in bfloat16; slower than float32 on a processor that has no instructions for it"""
    INT8 = "int8"
    """weights rounded to 8 bits, one scale a map, inputs rounded as they come; on a CPU"""


RerankerT = TypeVar("RerankerT", bound=PackedReranker[Any])


def at_precision(reranker: RerankerT, precision: Precision) -> RerankerT:
    """The reranker, or a copy of it for inference, that scores in `precision`.

    Raises:
        BadInput: for int8 where this build of torch cannot round weights, or they are quantized already.
    """
    if precision is Precision.FLOAT32:
        return reranker
    if precision is Precision.INT8 and is_quantized(plain(reranker.backbone)):
        raise BadInput("int8 needs weights of full precision, and these have four bits: use float32 or bfloat16")
    twin = reranker.merged()
    if precision is Precision.BFLOAT16:
        twin.scoring_type = torch.bfloat16
        return twin
    twin.backbone, twin.head = _rounded(copy.deepcopy(twin.backbone).cpu()), twin.head.cpu()
    return twin


def _rounded(model: torch.nn.Module) -> torch.nn.Module:
    """With linear maps of 8-bit weights."""
    quantize = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is None:
        raise BadInput("int8 needs a build of torch with dynamic quantization, which this one lacks: use bfloat16")
    with warnings.catch_warnings():
        # On its way from torch to torchao, where it still waits for its CPU kernels.
        warnings.simplefilter("ignore")
        made: torch.nn.Module = quantize(model, {torch.nn.Linear}, dtype=torch.qint8)
    return made
