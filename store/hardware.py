"""Where models run, and in what arithmetic."""

from enum import StrEnum

import torch


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
