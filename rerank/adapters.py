"""Ways to train a part of a frozen language model: what is added or opened, saved, loaded and merged."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
)
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import nn

from rerank.quantization import is_quantized
from store.errors import BadInput

WEIGHTS = "weights.safetensors"
"""Of the kinds that PEFT does not have."""


class AdapterKind(StrEnum):
    """What is trained."""

    LORA = "lora"
    """low-rank updates of linear maps (Hu et al. 2021)"""
    DORA = "dora"
    """the same with a magnitude of its own for each output (Liu et al. 2024)"""
    ADALORA = "adalora"
    """low-rank updates whose ranks go where they matter (Zhang et al. 2023)"""
    IA3 = "ia3"
    """a factor for each key, value and inner activation (Liu et al. 2022)"""
    BOTTLENECK = "bottleneck"
    """a small network behind each layer (Houlsby et al. 2019)"""
    PREFIX = "prefix"
    """keys and values of virtual tokens before the text; decoders only (Li and Liang 2021)"""
    LAST_LAYERS = "last_layers"
    """all weights of the last layers"""
    FULL = "full"
    """all weights"""


class AdapterConfig(BaseModel):
    """What is trained inside the language model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AdapterKind = Field(AdapterKind.LORA, description="kind of adapter")
    rank: int = Field(16, ge=1, description="rank of each update, or on average; width of a bottleneck")
    alpha: float = Field(32.0, gt=0, description="an update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input, in training")
    target_modules: tuple[str, ...] = Field(
        ("query", "key", "value", "dense"), min_length=1, description="names of the linear maps that are adapted"
    )
    scaled_modules: tuple[str, ...] = Field(("key", "value"), description="IA3: maps whose outputs are scaled")
    scaled_inner: tuple[str, ...] = Field(("output.dense",), description="IA3: maps whose inputs are scaled")
    virtual_tokens: int = Field(16, ge=1, description="prefix tuning: tokens before the text")
    last_layers: int = Field(2, ge=1, description="layers that are opened by last_layers")


def attach(model: Any, config: AdapterConfig) -> Any:
    """`model`, which is frozen, with a fresh adapter from torch's global generator; at first it changes nothing.

    Prefix tuning alone changes the scores from the start.
    """
    if config.kind in PEFT_KINDS:
        with _without_deprecations():
            return get_peft_model(model, PEFT_KINDS[config.kind](config, model))
    OWN_KINDS[config.kind](model, config)
    return model


def reattach(model: Any, config: AdapterConfig, folder: Path) -> Any:
    """`model` with the adapter that `save` wrote into `folder`, to be trained on unless it is a prefix (PEFT refuses).

    Raises:
        OSError, ValueError, RuntimeError, SafetensorError: when it cannot be read, or is of another shape.
    """
    if config.kind in PEFT_KINDS:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            # PEFT would look for a missing file on the model hub.
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder.name}/{name} is missing")
        with _without_deprecations():
            trainable = config.kind is not AdapterKind.PREFIX
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    OWN_KINDS[config.kind](model, config)
    opened = {name: value for name, value in model.named_parameters() if value.requires_grad}
    saved = load_file(folder / WEIGHTS)
    if saved.keys() != opened.keys():
        raise ValueError(f"{folder.name}/{WEIGHTS} holds other weights than {config.kind} has in this model")
    with torch.no_grad():
        for name, value in opened.items():
            value.copy_(saved[name])
    return model


def save(model: Any, config: AdapterConfig, folder: Path, *, base: str) -> None:
    """Writes the adapter alone into `folder`, a PEFT folder where PEFT knows the kind.

    Args:
        model: what `attach` or `reattach` gave.
        config: that of `attach`.
        folder: is made if missing.
        base: name of the frozen model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.kind in PEFT_KINDS:
        # PEFT would write the folder the base was loaded from, which means nothing on another machine.
        model.peft_config["default"].base_model_name_or_path = base
        _keep_ranks_in_use(model)
        # Left at "auto", saving asks the model hub whether the vocabulary has changed.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to fill in, with the base's path
        return
    opened = {name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad}
    save_file(opened, folder / WEIGHTS)
    card = {"kind": config.kind.value, "base_model": base}
    (folder / "adapter.json").write_text(json.dumps(card) + "\n", encoding="utf-8")


def _keep_ranks_in_use(model: Any) -> None:
    """AdaLoRA saves the ranks of its last allocation, but weights of an earlier step may have been put back since."""
    pattern = getattr(model.peft_config["default"], "rank_pattern", None)
    if not pattern or not isinstance(model.peft_config["default"], AdaLoraConfig):
        return
    weights = dict(model.base_model.model.named_parameters())
    for name, kept in pattern.items():
        used = (weights[name if name in weights else f"{name}.default"].flatten() != 0).tolist()
        if len(used) == len(kept):  # others were cut when they were loaded, and are all in use
            pattern[name] = [one or other for one, other in zip(kept, used, strict=True)]


def merged(model: Any) -> Any:
    """A copy with what can be added into the weights added, for inference; a quantized model as it is."""
    if is_quantized(plain(model)):
        return model
    twin = copy.deepcopy(model)
    if isinstance(twin, PeftModel) and not is_prefix(twin):
        return twin.merge_and_unload()
    return twin


def merges(config: AdapterConfig) -> bool:
    """Whether what is trained can be added into the weights, or is in them from the start."""
    return config.kind not in (AdapterKind.PREFIX, AdapterKind.BOTTLENECK)


def plain(model: Any) -> Any:
    """The model itself, as transformers made it, with what PEFT has put inside."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_prefix(model: Any) -> bool:
    """Whether the model has virtual tokens before the text."""
    return isinstance(model, PeftModel) and isinstance(model.peft_config["default"], PrefixTuningConfig)


class RankSchedule:
    """Moves AdaLoRA's ranks while a training runs, and adds its penalty; nothing for all other kinds.

    AdaLoRA counts steps, and a training may be ended by the clock: its steps are shares of the progress.
    """

    STEPS, UNTIL, FROM = 1000, 800, 100

    def __init__(self, model: Any) -> None:
        moves = isinstance(model, PeftModel) and isinstance(model.peft_config["default"], AdaLoraConfig)
        self._model = model.base_model if moves else None
        self._last = -1

    def penalty(self) -> torch.Tensor | float:
        """How far the factors of the updates are from orthogonal, as a term of the loss (AdaLoRA's equation 4)."""
        if self._model is None:
            return 0.0
        factors = [value for name, value in self._model.named_parameters() if "lora_A" in name or "lora_B" in name]
        total: torch.Tensor | float = 0.0
        for factor in factors:
            flat = factor if factor.shape[0] < factor.shape[1] else factor.T
            total = total + (flat @ flat.T - torch.eye(len(flat), device=flat.device)).norm()
        weight: float = self._model.peft_config["default"].orth_reg_weight
        return weight * total / max(len(factors), 1)

    def step(self, progress: float) -> None:
        """After an optimizer's step, while its gradients are still there; `progress` in [0, 1] of the training."""
        if self._model is None:
            return
        now = max(self._last, min(int(progress * self.STEPS), self.STEPS))
        if self._last < self.UNTIL <= now:
            now = self.UNTIL  # the step at which the ranks become final must not be missed
        self._model.update_and_allocate(now)
        self._last = now

    def parts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: how far it is, each rank's importance, and which of them have been kept."""
        if self._model is None:
            return {"last": self._last, "importance": {}, "pattern": None}
        remembered = {name: dict(getattr(self._allocator, name)) for name in _IMPORTANCE}
        return {"last": self._last, "importance": remembered, "pattern": self._config.rank_pattern}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Takes on what `parts` gave."""
        self._last = parts["last"]
        if self._model is None:
            return
        device = next(self._model.parameters()).device
        for name, values in parts["importance"].items():
            setattr(self._allocator, name, {weight: value.to(device) for weight, value in values.items()})
        self._config.rank_pattern = parts["pattern"]

    @property
    def _allocator(self) -> Any:
        assert self._model is not None
        return self._model.rankallocator

    @property
    def _config(self) -> Any:
        assert self._model is not None
        return self._model.peft_config["default"]


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _lora(config: AdapterConfig, model: Any) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        exclude_modules=_unused(model),
        use_dora=config.kind is AdapterKind.DORA,
        bias="none",
    )


def _adalora(config: AdapterConfig, model: Any) -> AdaLoraConfig:
    return AdaLoraConfig(
        init_r=config.rank + (config.rank + 1) // 2,
        target_r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        exclude_modules=_unused(model),
        total_step=RankSchedule.STEPS,
        tinit=RankSchedule.FROM,
        tfinal=RankSchedule.STEPS - RankSchedule.UNTIL,
    )


def _ia3(config: AdapterConfig, model: Any) -> IA3Config:
    return IA3Config(
        target_modules=[*config.scaled_modules, *config.scaled_inner],
        feedforward_modules=list(config.scaled_inner),
        exclude_modules=_unused(model),
    )


def _prefix(config: AdapterConfig, model: Any) -> PrefixTuningConfig:
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise BadInput("prefix tuning is for decoders: choose another adapter.kind for this model")
    return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=config.virtual_tokens)


def _unused(model: Any) -> str | None:
    """A pooler's output is never used; adapted, it would be dead weight in every file."""
    return r".*pooler.*" if any("pooler" in name for name, _ in model.named_modules()) else None


class Bottleneck(nn.Module):
    """x + up(GELU(down(x))); `up` starts at zero."""

    def __init__(self, dimension: int, width: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dimension, width), nn.Linear(width, dimension)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., D) → (..., D)."""
        added: torch.Tensor = self.up(torch.nn.functional.gelu(self.down(self.dropout(states))))
        return states + added


def _bottlenecks(model: Any, config: AdapterConfig) -> None:
    for layer in _layers(model):
        layer.bottleneck = Bottleneck(model.config.hidden_size, config.rank, config.dropout)
        layer.register_forward_hook(_behind)


def _behind(layer: Any, _: Any, output: Any) -> Any:
    """A hook that finds its network on the layer it is called for, so that a copied model uses its own."""
    if isinstance(output, tuple):
        return (layer.bottleneck(output[0]), *output[1:])
    return layer.bottleneck(output)


def _last_layers(model: Any, config: AdapterConfig) -> None:
    for layer in _layers(model)[-config.last_layers :]:
        layer.requires_grad_(True)


def _full(model: Any, config: AdapterConfig) -> None:
    for name, value in model.named_parameters():
        value.requires_grad_("pooler" not in name)


def _layers(model: Any) -> nn.ModuleList:
    """The transformer's layers: the longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


PEFT_KINDS: dict[AdapterKind, Callable[[AdapterConfig, Any], Any]] = {
    AdapterKind.LORA: _lora,
    AdapterKind.DORA: _lora,
    AdapterKind.ADALORA: _adalora,
    AdapterKind.IA3: _ia3,
    AdapterKind.PREFIX: _prefix,
}
"""Kind → the maker of its PEFT configuration."""

OWN_KINDS: dict[AdapterKind, Callable[[Any, AdapterConfig], None]] = {
    AdapterKind.BOTTLENECK: _bottlenecks,
    AdapterKind.LAST_LAYERS: _last_layers,
    AdapterKind.FULL: _full,
}
"""Kind → what opens or adds its weights in a frozen model."""


@contextmanager
def _without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT asks transformers for this under its old name; nothing that a caller could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # It takes AdaLoRA's pattern of ranks for LoRA's, which names other modules; it is obeyed all the same.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
        yield
