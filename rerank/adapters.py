"""Low-rank adapters on a frozen language model."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field


class AdapterKind(StrEnum):
    """Ways to adapt a frozen model."""

    LORA = "lora"


class AdapterConfig(BaseModel):
    """What is trained inside the language model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AdapterKind = Field(AdapterKind.LORA, description="kind of adapter")
    rank: int = Field(16, ge=1, description="rank of each update")
    alpha: float = Field(32.0, gt=0, description="an update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input, in training")
    target_modules: tuple[str, ...] = Field(
        ("query", "key", "value", "dense"), min_length=1, description="names of the linear maps that are adapted"
    )


def _lora(config: AdapterConfig, model: Any) -> PeftConfig:
    # A pooler's output is never used; adapted, it would be dead weight in every file.
    pooled = any("pooler" in name for name, _ in model.named_modules())
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        exclude_modules=r".*pooler.*" if pooled else None,
        bias="none",
    )


ADAPTERS: dict[AdapterKind, Callable[[AdapterConfig, Any], Any]] = {AdapterKind.LORA: _lora}
"""Kind → the maker of its PEFT configuration."""


def attach(model: Any, config: AdapterConfig) -> PeftModel:
    """`model` with a fresh adapter, drawn from torch's global generator; at first it changes nothing."""
    with _without_deprecations():
        return get_peft_model(model, ADAPTERS[config.kind](config, model))


def reattach(model: Any, folder: Path) -> PeftModel:
    """`model` with the adapter that PEFT saved in `folder`, open to further training."""
    with _without_deprecations():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT asks transformers for this under its old name; nothing that a caller could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
