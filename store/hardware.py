"""Where models run, and in what arithmetic."""

import time
from collections.abc import Mapping
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

LEAST_SPEEDUP = 1.25
"""Of products in bfloat16 over float32: with less, the conversions around them take what is gained."""
TRIED_SHAPE, TRIALS = (256, 384, 384), 50
"""Tokens, width and width of a small language model's product, done in less than a scheduler's turn; and how often."""
TRIED_KINDS = (torch.float32, torch.bfloat16)


class Precision(StrEnum):
    """Arithmetic of matrix products; what comes out is float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def device() -> str:
    """Where models run: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_bfloat16(precision: Precision) -> bool:
    """Whether to multiply in bfloat16: as asked, or, for `AUTO`, on a GPU and where the processor is faster in it."""
    if precision is not Precision.AUTO:
        return precision is Precision.BFLOAT16
    return torch.cuda.is_available() or bfloat16_speedup() >= LEAST_SPEEDUP


@cache
def bfloat16_speedup() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16; 0 without instructions for it.

    Measured once, in some hundredths of a second: among processors that have the instructions, some are three times as
    fast with them, others take twice as long. On one thread: several wait for each other where the machine is busy.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return 0.0
    rows, width, inner = TRIED_SHAPE
    fastest: dict[torch.dtype, float] = {}
    sides = {kind: (torch.ones(rows, width, dtype=kind), torch.ones(inner, width, dtype=kind)) for kind in TRIED_KINDS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + TRIALS):  # in turn, so that what else the machine does meets both; the first warms up
            for kind, (left, right) in sides.items():
                started = time.perf_counter()
                left @ right.T
                fastest[kind] = min(fastest.get(kind, float("inf")), time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return fastest[torch.float32] / fastest[torch.bfloat16]


def random_states(used: torch.device) -> dict[str, Tensor | None]:
    """Of PyTorch's generators on the processor and, where it is one, on the GPU that is used."""
    on_gpu = torch.cuda.get_rng_state(used) if used.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": on_gpu}


def restore_random_states(states: Mapping[str, Tensor | None], used: torch.device) -> None:
    """What `random_states` gave; a GPU that was not used then goes on as it is."""
    if (on_cpu := states["torch"]) is not None:
        torch.set_rng_state(on_cpu)
    if used.type == "cuda" and (on_gpu := states.get("cuda")) is not None:
        torch.cuda.set_rng_state(on_gpu, used)
