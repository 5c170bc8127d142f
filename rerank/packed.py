"""A language model that scores packed candidates: what encoders and decoders have in common."""

import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.schema import Scores
from rerank import adapters
from rerank.adapters import AdapterConfig
from rerank.backbone import frozen_backbone
from rerank.base import RerankRequest, RerankResult
from rerank.budget import Cap, Cut, Pace, Wanted, plan_together
from rerank.card import ADAPTER_DIR, CARD_FILE, FORMAT, HEAD_FILE, BaseModelName, corrupt, read_card
from rerank.hints import led
from rerank.packing import Packed, Prompt, pack, split_long
from rerank.pairs import PairScorer
from rerank.prompt import PromptConfig, Prompter, recent
from rerank.quantization import is_quantized
from rerank.shared_prefix import Row
from rerank.spans import PrefixStates
from store.errors import Mismatch
from store.hardware import device


class PackedConfig(BaseModel):
    """The shape of any packed reranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptConfig = Field(default_factory=PromptConfig, description="how much text is read")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="what is trained in the model")
    layers: int | None = Field(
        None, ge=1, description="layers of the model that are kept, evenly spread; less time, less quality; unset: all"
    )
    max_batch_tokens: int = Field(8192, ge=64, description="tokens of one forward pass in scoring")
    grades: tuple[float, ...] = Field(
        (), description="rating scale, lowest first; empty: as found in the log, where the objective is graded"
    )

    @field_validator("grades")
    @classmethod
    def _a_scale_rises(cls, grades: tuple[float, ...]) -> tuple[float, ...]:
        if grades and (len(grades) < 2 or any(low >= high for low, high in pairwise(grades))):
            raise ValueError(f"grades are {list(grades)}, but a rating scale has at least two, each above the last")
        return grades


ConfigT = TypeVar("ConfigT", bound=PackedConfig)


class PackedReranker(PairScorer, ABC, Generic[ConfigT]):
    """Reranker with an adapter inside a frozen model and a head on top; see `packing` for the layout.

    Make one with `create` or `load`.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[PackedConfig]]
    causal: ClassVar[bool]
    model_types: ClassVar[frozenset[str]]
    """Those that transformers' config.json may name."""

    def __init__(
        self, *, backbone: Any, head: torch.nn.Module, prompter: Prompter, base: BaseModelName, config: ConfigT
    ) -> None:
        self.name = self.kind
        # Four bits stay where bitsandbytes has put them.
        self.backbone = backbone if is_quantized(adapters.plain(backbone)) else backbone.to(device())
        self.head = head.to(self.device)
        self.prompter = prompter
        self.base = base
        self.config = config
        self.is_merged = False
        self.scoring_type: torch.dtype | None = None
        self.pace = Pace()
        self.backbone.eval()
        self.head.eval()

    @property
    def device(self) -> torch.device:
        """Where the model and its head are: on a GPU where there is one."""
        found: torch.device = adapters.plain(self.backbone).device
        return found

    # --- what the kinds decide

    @classmethod
    @abstractmethod
    def read_backbone(cls, model_dir: Path, config: ConfigT) -> Any:
        """The model, as transformers reads it; OSError, ValueError or SafetensorError where it cannot be read."""

    @classmethod
    @abstractmethod
    def new_head(cls, backbone: Any, config: ConfigT) -> torch.nn.Module:
        """A head before training."""

    @classmethod
    @abstractmethod
    def new_prompter(cls, model_dir: Path, config: ConfigT) -> Prompter:
        """The tokenizer of the model, with the wording of this kind."""

    @abstractmethod
    def states(self, packed: Packed, row: Row) -> torch.Tensor:
        """(L, D) of the last layer."""

    @abstractmethod
    def scores_of(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) float32 from the states (L, D)."""

    def damp(self, factor: float) -> bool:
        """Multiplies all scores by `factor`; false, and nothing is done, where no trained weight can do it."""
        return False

    # --- files

    @classmethod
    def create(cls, model_dir: Path, *, base: BaseModelName, config: ConfigT, seed: int) -> Self:
        """An untrained reranker.

        Args:
            model_dir: folder with config.json, weights and a fast tokenizer.
            base: name and fingerprint of that folder, kept with every saved copy.
            config: its shape.
            seed: of the adapter's and the head's first weights.

        Raises:
            BadInput: when the model cannot be packed, or its positions are too few for the prompts.
            CorruptArtifact: when it cannot be read.
        """
        backbone = cls._backbone(model_dir, config)
        prompter = cls.new_prompter(model_dir, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = cls.new_head(backbone, config)
            adapted = adapters.attach(backbone, config.adapter)
        return cls(backbone=adapted, head=head, prompter=prompter, base=base, config=config)

    @classmethod
    def load(cls, folder: Path, *, model_dir: Path, model_fingerprint: str) -> Self:
        """A reranker that `save` wrote, on the same base model.

        Raises:
            Mismatch: when the base has another fingerprint than the one it was trained on.
            CorruptArtifact: when a file is missing, unreadable or of an unknown format.
        """
        card = read_card(folder)
        config: Any = cls.config_type.model_validate(card["config"])
        base = BaseModelName(**card["base"])
        if base.fingerprint != model_fingerprint:
            raise Mismatch(
                f"the reranker in {folder.name} was trained on {base.name} with fingerprint {base.fingerprint}, but"
                f" the model in {model_dir.name} has {model_fingerprint}: name the first model, or train again"
                " with 'python cli.py train-reranker'"
            )
        backbone = cls._backbone(model_dir, config)
        head = cls.new_head(backbone, config)
        try:
            head.load_state_dict(load_file(folder / HEAD_FILE))
            adapted = adapters.reattach(backbone, config.adapter, folder / ADAPTER_DIR)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise corrupt(folder, error) from error
        prompter = cls.new_prompter(model_dir, config)
        return cls(backbone=adapted, head=head, prompter=prompter, base=base, config=config)

    def save(self, folder: Path) -> None:
        """Write the adapter in a folder of its own, the head and a card into `folder`, which is made if missing.

        Raises:
            ValueError: for a merged copy, which has no adapter of its own any more.
        """
        if self.is_merged:
            raise ValueError("a merged reranker cannot be saved: save the one it was made from")
        folder.mkdir(parents=True, exist_ok=True)
        adapters.save(self.backbone, self.config.adapter, folder / ADAPTER_DIR, base=self.base.name)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)
        card = {
            "format": FORMAT,
            "kind": self.kind,
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "config": self.config.model_dump(mode="json"),
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def merged(self) -> Self:
        """A copy for inference with the adapter added into the weights: equal scores, fewer products."""
        twin = type(self)(
            backbone=adapters.merged(self.backbone),
            head=copy.deepcopy(self.head),
            prompter=self.prompter,
            base=self.base,
            config=self.config,
        )
        twin.is_merged = True
        return twin

    # --- training

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """What training changes: the adapter's and the head's parameters, by name."""
        named = {f"backbone.{name}": value for name, value in self.backbone.named_parameters() if value.requires_grad}
        return named | {f"head.{name}": value for name, value in self.head.named_parameters()}

    @contextmanager
    def training(self, *, checkpointing: bool = False) -> Iterator[None]:
        """Dropout is on inside the block.

        Args:
            checkpointing: keep what goes into each layer and compute the layer again on the way back.
        """
        for module in (self.backbone, self.head):
            module.train()
        if checkpointing:
            adapters.plain(self.backbone).activation_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            if checkpointing:
                adapters.plain(self.backbone).activation_checkpointing_disable()
            for module in (self.backbone, self.head):
                module.eval()
            self.forget()

    def forget(self) -> None:
        """Drops what was remembered of earlier requests; to be called wherever weights have changed."""

    def forward(self, prompts: Sequence[Prompt], *, autocast: torch.dtype | None = None) -> torch.Tensor:
        """Scores with a graph, for training.

        Args:
            prompts: B prompts.
            autocast: run the backbone's products in this type; the head stays in float32.

        Returns:
            (B, K) float32, K the largest number of candidates; -inf beyond a prompt's own.
        """
        packed = pack(prompts, device=self.device)
        flat = self.row_scores(packed, self.row_of(packed), autocast=autocast)
        lists = list(torch.split(flat, packed.candidates))
        return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=float("-inf"))

    def grade_logits(self, prompts: Sequence[Prompt], *, autocast: torch.dtype | None = None) -> torch.Tensor:
        """(ΣK, G) float32 logits of the grades of all candidates, with a graph; of a reranker with `config.grades`."""
        packed = pack(prompts, device=self.device)
        head: Any = self.head
        logits: torch.Tensor = head.logits(self._states(packed, self.row_of(packed), autocast), packed)
        return logits

    # --- scoring

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`."""
        started = time.perf_counter()
        prompts = [self.prompt_of(request) for request in requests]
        wanted = [
            Wanted(prompt, request.limits, request.max_ms, self.remembered(prompt))
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        behind_ms = (time.perf_counter() - started) * 1000
        plans = plan_together(wanted, self.pace, behind_ms=behind_ms, row_tokens=self.config.max_batch_tokens)
        held = [one.remembered for one in wanted]
        found = self.score_prompts([made.prompt for made in plans], autocast=self.scoring_type, held=held)
        return replace(found, cuts=[(made.cut, made.cap) for made in plans])

    def calibrate(self) -> None:
        """Reads made-up prompts of several lengths, twice each, until the pace is known."""
        item = self.prompter.tokenize(["one two three four five six seven eight"])[0]
        while not self.pace.known:
            for count in (2, 5, 10, 20):
                prompts = [self.prompter.prompt([item] * (count // 2), [item] * count)]
                self.score_prompts(prompts, autocast=self.scoring_type)
        self.forget()

    def remembered(self, prompt: Prompt) -> PrefixStates | None:
        """The states of a prompt's prefix where it need not be read again."""
        return None

    def score_prompts(
        self,
        prompts: Sequence[Prompt],
        *,
        autocast: torch.dtype | None = None,
        held: Sequence[PrefixStates | None] | None = None,
    ) -> RerankResult:
        """The same for prompts; `held`: what of each was `remembered` when it was planned."""
        held = held or [None] * len(prompts)
        owned = [(owner, part) for owner, prompt in enumerate(prompts) for part in self._parts(prompt)]
        scores: list[list[Scores]] = [[np.empty(0, dtype=np.float32)] for _ in prompts]
        tokens, cached = [0] * len(prompts), [0] * len(prompts)
        with torch.inference_mode():
            for batch in _filled(owned, self.config.max_batch_tokens):
                started = time.perf_counter()
                found = self.score_row([part for _, part in batch], autocast, [held[owner] for owner, _ in batch])
                fed = sum(part.tokens for _, part in batch) - sum(found[1])
                self.pace.observe(fed, (time.perf_counter() - started) * 1000)
                for (owner, part), values, remembered in zip(batch, *found, strict=True):
                    scores[owner].append(values)
                    tokens[owner] += part.tokens
                    cached[owner] += remembered
        cut = [prompt.cut_candidates for prompt in prompts]
        uncut = [(Cut.NONE, Cap.NONE)] * len(prompts)
        return RerankResult([np.concatenate(values) for values in scores], tokens, cached, cut, uncut)

    def score_row(
        self, parts: Sequence[Prompt], autocast: torch.dtype | None, held: Sequence[PrefixStates | None]
    ) -> tuple[list[Scores], list[int]]:
        """(k,) float32 for each of the prompts of one row, and how many of its tokens did not have to be read."""
        packed = pack(parts, device=self.device)
        flat = self.row_scores(packed, self.row_of(packed), autocast=autocast)
        return split(flat, packed), [0] * len(parts)

    def row_of(self, packed: Packed, *, remember: bool = False) -> Row:
        """What the attention has to know; on a GPU one call for all prompts is faster than many small ones."""
        return Row(packed.spans, self.causal, remember=remember, in_blocks=self.device.type == "cuda")

    def row_scores(self, packed: Packed, row: Row, *, autocast: torch.dtype | None) -> torch.Tensor:
        """(ΣK,) float32."""
        return self.scores_of(self._states(packed, row, autocast), packed)

    def _states(self, packed: Packed, row: Row, autocast: torch.dtype | None) -> torch.Tensor:
        """(L, D) float32 of the last layer."""
        with nullcontext() if autocast is None else torch.autocast(self.device.type, dtype=autocast):
            return self.states(packed, row).float()

    def prompt_of(self, request: RerankRequest) -> Prompt:
        """What a request makes the model read if nothing caps it."""
        hint = self.config.prompt.hint
        candidates = led(request.candidates, hint, request.hints.get(hint))
        history = recent(request.history, self.config.prompt)  # before anything is read: time is short
        about, *ids = self.prompter.tokenize([request.about, *history, *candidates])
        known = len(history)
        return self.prompter.prompt(ids[:known], ids[known:], about=about)

    @classmethod
    def _backbone(cls, model_dir: Path, config: ConfigT) -> Any:
        return frozen_backbone(
            lambda: cls.read_backbone(model_dir, config),
            model_dir,
            model_types=cls.model_types,
            prompt=config.prompt,
            layers=config.layers,
        )

    def _parts(self, prompt: Prompt) -> list[Prompt]:
        """What really goes through the model: nothing where there is no candidate."""
        return split_long(prompt, max_tokens=self.config.max_batch_tokens) if prompt.candidates else []


def split(flat: torch.Tensor, packed: Packed) -> list[Scores]:
    """(k,) float32 for each prompt from (ΣK,), which may be on a GPU."""
    return [scores.numpy() for scores in torch.split(flat.float().cpu(), packed.candidates)]


def _filled(parts: Sequence[tuple[int, Prompt]], limit: int) -> Iterator[list[tuple[int, Prompt]]]:
    """Rows of as many prompts as `limit` tokens hold, in order, at least one each."""
    batch: list[tuple[int, Prompt]] = []
    used = 0
    for owner, part in parts:
        if batch and used + part.tokens > limit:
            yield batch
            batch, used = [], 0
        batch.append((owner, part))
        used += part.tokens
    if batch:
        yield batch
