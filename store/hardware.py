"""Where models run, and in what arithmetic."""

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor


class Precision(StrEnum):
    """Arithmetic of matrix products; what comes out is float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def device() -> str:
    """Where models run: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_bfloat16(precision: Precision) -> bool:
    """Whether to multiply in bfloat16: as asked, or, for `AUTO`, where the processor computes it fast."""
    if precision is not Precision.AUTO:
        return precision is Precision.BFLOAT16
    if torch.cuda.is_available():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())


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
