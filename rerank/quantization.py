"""A frozen base of four bits a weight under an adapter of full precision, for models that a GPU could not hold else."""

from enum import StrEnum
from importlib.util import find_spec
from typing import Any

import torch

from store.errors import BadInput, MissingPackage


class Quantization(StrEnum):
    """How the frozen weights are kept."""

    NF4 = "nf4"
    """normal floats of four bits, their scales quantised too (QLoRA, Dettmers et al. 2023)"""


def loading_options(quantization: Quantization | None) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told; nothing without a quantization.

    Raises:
        BadInput: where there is no NVIDIA GPU.
        MissingPackage: where bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    wants = f"reranker.decoder.quantization is {quantization.value}"
    if not torch.cuda.is_available():
        raise BadInput(f"{wants}, which needs an NVIDIA GPU, and PyTorch finds none here: leave it unset")
    if find_spec("bitsandbytes") is None:
        raise MissingPackage(
            f"{wants}, but bitsandbytes is not installed: pip install -c requirements-gpu.lock --group qlora"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.value,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": 0}}


def is_quantized(model: Any) -> bool:
    """Whether the weights are kept in four bits; such a model is neither copied nor merged."""
    return bool(getattr(model, "is_loaded_in_4bit", False))
