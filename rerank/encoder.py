"""A bidirectional encoder with LoRA that scores packed pairs."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from data.schema import Scores
from rerank.adapters import AdapterConfig, attach, reattach
from rerank.base import RerankRequest, RerankResult
from rerank.head import PairHead
from rerank.packing import Prompt, additive_mask, pack, split_long
from rerank.prompt import PromptConfig, Prompter
from store.errors import BadInput, CorruptArtifact, Mismatch

FORMAT = 1
ADAPTER_DIR, HEAD_FILE, CARD_FILE = "adapter", "head.safetensors", "reranker.json"
PACKABLE = frozenset({"bert"})
"""Model types known to take explicit positions and a 4-D mask, as packing needs."""


class EncoderConfig(BaseModel):
    """The shape of an encoder reranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptConfig = Field(default_factory=PromptConfig, description="how much text is read")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="what is trained in the encoder")
    head_width: int = Field(128, ge=1, description="hidden units of the head's MLP")
    start_temperature: float = Field(5.0, gt=0, description="factor of the cosine before training")
    start_decay: float = Field(
        0.8, gt=0, lt=1, description="weight of a history item over the next more recent one, before training"
    )
    max_packed_tokens: int = Field(
        1024, ge=64, description="longest packed sequence; more candidates go into a second one"
    )
    max_batch_tokens: int = Field(8192, ge=64, description="tokens of one forward pass in scoring, padding included")


@dataclass(frozen=True, slots=True)
class BaseModelName:
    """Which frozen model a reranker stands on: a name for people and the fingerprint that is checked."""

    name: str
    fingerprint: str


class EncoderReranker:
    """Reranker of the BERT family; see `PairHead` for the score and `packing` for the layout.

    Make one with `create` or `load`.
    """

    def __init__(
        self, *, encoder: Any, head: PairHead, prompter: Prompter, base: BaseModelName, config: EncoderConfig
    ) -> None:
        self.name = "encoder"
        self.encoder = encoder
        self.head = head
        self.prompter = prompter
        self.base = base
        self.config = config
        self.encoder.eval()
        self.head.eval()

    @classmethod
    def create(cls, model_dir: Path, *, base: BaseModelName, config: EncoderConfig, seed: int) -> "EncoderReranker":
        """An untrained reranker, which ranks by the encoder's cosine.

        Args:
            model_dir: folder with config.json, weights and a fast tokenizer.
            base: name and fingerprint of that folder, kept with every saved copy.
            config: its shape.
            seed: of the adapter's and the head's first weights.

        Raises:
            BadInput: when the model cannot be packed, or its positions are too few for the prompts.
        """
        encoder = _frozen_encoder(model_dir, config.prompt)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = attach(encoder, config.adapter)
            head = _new_head(encoder, config)
        return cls(encoder=adapted, head=head, prompter=_prompter(model_dir, config.prompt), base=base, config=config)

    @classmethod
    def load(cls, folder: Path, *, model_dir: Path, model_fingerprint: str) -> "EncoderReranker":
        """A reranker that `save` wrote, on the same base model.

        Raises:
            Mismatch: when the base has another fingerprint than the one it was trained on.
            CorruptArtifact: when a file is missing, unreadable or of an unknown format.
        """
        base, config = _read_card(folder)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            # PEFT would look for a missing file on the model hub.
            if not (folder / ADAPTER_DIR / name).is_file():
                raise _corrupt(folder, FileNotFoundError(f"{ADAPTER_DIR}/{name} is missing"))
        if base.fingerprint != model_fingerprint:
            raise Mismatch(
                f"the reranker in {folder.name} was trained on {base.name} with fingerprint {base.fingerprint}, but"
                f" the model in {model_dir.name} has {model_fingerprint}: name the first model, or train again"
                " with 'python cli.py train-reranker'"
            )
        encoder = _frozen_encoder(model_dir, config.prompt)
        head = _new_head(encoder, config)
        try:
            head.load_state_dict(load_file(folder / HEAD_FILE))
            adapted = reattach(encoder, folder / ADAPTER_DIR)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _corrupt(folder, error) from error
        return cls(encoder=adapted, head=head, prompter=_prompter(model_dir, config.prompt), base=base, config=config)

    def save(self, folder: Path) -> None:
        """Write a PEFT adapter folder, the head and a card into `folder`, which is made if missing.

        Raises:
            ValueError: for a merged copy, which has no adapter of its own any more.
        """
        if not isinstance(self.encoder, PeftModel):
            raise ValueError("a merged reranker cannot be saved: save the one it was made from")
        folder.mkdir(parents=True, exist_ok=True)
        # PEFT would write the folder the base was loaded from, which means nothing on another machine.
        self.encoder.peft_config["default"].base_model_name_or_path = self.base.name
        # Left at "auto", saving asks the model hub whether the vocabulary has changed.
        self.encoder.save_pretrained(str(folder / ADAPTER_DIR), save_embedding_layers=False)
        (folder / ADAPTER_DIR / "README.md").unlink(missing_ok=True)  # a form to fill in, with the base's path
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)
        card = {
            "format": FORMAT,
            "kind": self.name,
            "base": {"name": self.base.name, "fingerprint": self.base.fingerprint},
            "config": self.config.model_dump(mode="json"),
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def merged(self) -> "EncoderReranker":
        """A copy for inference with the adapter added into the weights: equal scores, fewer products."""
        encoder = copy.deepcopy(self.encoder)
        if isinstance(encoder, PeftModel):
            encoder = encoder.merge_and_unload()
        return EncoderReranker(
            encoder=encoder,
            head=copy.deepcopy(self.head),
            prompter=self.prompter,
            base=self.base,
            config=self.config,
        )

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """What training changes: the adapter's and the head's parameters, by name."""
        named = {f"encoder.{name}": value for name, value in self.encoder.named_parameters() if value.requires_grad}
        return named | {f"head.{name}": value for name, value in self.head.named_parameters()}

    @contextmanager
    def training(self) -> Iterator[None]:
        """Dropout is on inside the block."""
        for module in (self.encoder, self.head):
            module.train()
        try:
            yield
        finally:
            for module in (self.encoder, self.head):
                module.eval()

    def forward(self, prompts: Sequence[Prompt], *, autocast: torch.dtype | None = None) -> torch.Tensor:
        """Scores with a graph, for training.

        Args:
            prompts: B prompts.
            autocast: run the encoder's products in this type; the head stays in float32.

        Returns:
            (B, K) float32, K the largest number of candidates; without meaning beyond a prompt's own.
        """
        packed = pack(prompts, pad_id=self.prompter.pad_id)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            states = self.encoder(
                input_ids=packed.input_ids,
                attention_mask=additive_mask(packed.segment_ids, dtype=autocast or torch.float32),
                position_ids=packed.position_ids,
            ).last_hidden_state  # (B, L, D)
        scores: torch.Tensor = self.head(states.float(), packed)
        return scores

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`; requests of like length go through the encoder together."""
        prompts = [self._prompt(request) for request in requests]
        tokens = [sum(part.tokens for part in self._parts(prompt)) for prompt in prompts]
        return RerankResult(self.score_prompts(prompts), tokens, [prompt.cut_candidates for prompt in prompts])

    def score_prompts(self, prompts: Sequence[Prompt], *, autocast: torch.dtype | None = None) -> list[Scores]:
        """(k,) float32 for each prompt, without a graph."""
        owned = [(owner, part) for owner, prompt in enumerate(prompts) for part in self._parts(prompt)]
        found = self._score_parts([part for _, part in owned], autocast)
        scores: list[list[Scores]] = [[np.empty(0, dtype=np.float32)] for _ in prompts]
        for (owner, _), values in zip(owned, found, strict=True):
            scores[owner].append(values)
        return [np.concatenate(values) for values in scores]

    def _prompt(self, request: RerankRequest) -> Prompt:
        ids = self.prompter.tokenize([*request.history, *request.candidates])
        known = len(request.history)
        return self.prompter.prompt(ids[:known], ids[known:])

    def _parts(self, prompt: Prompt) -> list[Prompt]:
        """What really goes through the encoder: nothing where there is no candidate."""
        return split_long(prompt, max_tokens=self.config.max_packed_tokens) if prompt.candidates else []

    def _score_parts(self, parts: Sequence[Prompt], autocast: torch.dtype | None) -> list[Scores]:
        """(k,) float32 for each part, in batches of like length."""
        order = sorted(range(len(parts)), key=lambda place: -parts[place].tokens)
        found: list[Scores] = [np.empty(0, dtype=np.float32)] * len(parts)
        start = 0
        with torch.inference_mode():
            while start < len(order):
                size = max(1, self.config.max_batch_tokens // parts[order[start]].tokens)
                places = order[start : start + size]
                scores = self.forward([parts[place] for place in places], autocast=autocast).numpy()
                for row, place in enumerate(places):
                    found[place] = scores[row, : len(parts[place].candidates)].copy()
                start += size
        return found


def _frozen_encoder(model_dir: Path, prompt: PromptConfig) -> Any:
    try:
        with _without_progress_bars():
            encoder = AutoModel.from_pretrained(
                str(model_dir),
                # sdpa takes the mask as it is; dropout in attention would leave its fast path, six times slower.
                attn_implementation="sdpa",
                attention_probs_dropout_prob=0.0,
                hidden_dropout_prob=0.0,
                dtype=torch.float32,
                local_files_only=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptArtifact(f"the model in {model_dir} cannot be read: {error}") from error
    if encoder.config.model_type not in PACKABLE:
        raise BadInput(
            f"the model in {model_dir.name} is of type {encoder.config.model_type!r}; an encoder reranker needs"
            f" one of {', '.join(sorted(PACKABLE))}"
        )
    need, there = prompt.max_history_tokens + prompt.max_candidate_tokens, encoder.config.max_position_embeddings
    if need > there:
        raise BadInput(
            f"max_history_tokens + max_candidate_tokens is {need}, but the model in {model_dir.name} has {there}"
            " positions: lower one of the two"
        )
    return encoder.requires_grad_(False)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _new_head(encoder: Any, config: EncoderConfig) -> PairHead:
    return PairHead(
        encoder.config.hidden_size,
        width=config.head_width,
        temperature=config.start_temperature,
        decay=config.start_decay,
    )


def _prompter(model_dir: Path, config: PromptConfig) -> Prompter:
    return Prompter(AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True), config)


def _read_card(folder: Path) -> tuple[BaseModelName, EncoderConfig]:
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, where this version reads {FORMAT}")
        return BaseModelName(**card["base"]), EncoderConfig.model_validate(card["config"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise _corrupt(folder, error) from error


def _corrupt(folder: Path, error: Exception) -> CorruptArtifact:
    return CorruptArtifact(
        f"the reranker in {folder} cannot be read ({error}): make it again with 'python cli.py train-reranker'"
    )
