"""A causal language model with an adapter that answers yes or no to packed candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.schema import Scores
from rerank.adapters import AdapterConfig, AdapterKind, is_prefix, plain
from rerank.head import expected
from rerank.packed import PackedConfig, PackedReranker, split
from rerank.packing import Packed, Prompt, pack
from rerank.prefix_cache import PrefixCache
from rerank.prompt import PromptConfig, Prompter, decoder_wording
from rerank.quantization import Quantization, loading_options
from rerank.shared_prefix import NAME, Row
from rerank.spans import PrefixStates
from store.errors import BadInput

YES, NO = " yes", " no"


class DecoderConfig(PackedConfig):
    """The shape of a decoder reranker."""

    prompt: PromptConfig = Field(
        PromptConfig(max_history_items=20, max_history_tokens=440, max_item_tokens=24, max_candidate_tokens=28),
        description="how much text is read",
    )
    adapter: AdapterConfig = Field(
        AdapterConfig(
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            scaled_modules=("k_proj", "v_proj"),
            scaled_inner=("down_proj",),
        ),
        description="what is trained in the model",
    )
    prefix_cache_mb: int = Field(512, ge=0, description="memory for the states of histories seen before; 0: none")
    quantization: Quantization | None = Field(
        None, description="nf4: the frozen weights in four bits, on an NVIDIA GPU with bitsandbytes; unset: as they are"
    )

    @model_validator(mode="after")
    def _quantized_weights_stay_frozen(self) -> Self:
        if self.quantization is not None and self.adapter.kind in (AdapterKind.FULL, AdapterKind.LAST_LAYERS):
            raise ValueError(
                f"adapter.kind {self.adapter.kind.value} trains the model's own weights, which cannot be kept in four"
                " bits: choose lora, or leave quantization unset"
            )
        return self


class YesNo(torch.nn.Module):
    """score = logit(yes) − logit(no), by the language model's own output map; nothing of it is trained.

    Args:
        direction: (D,) float32, the row of "yes" less that of "no".
    """

    direction: torch.Tensor

    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)

    def forward(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) float32 from the states (L, D) at the end of each candidate."""
        scores: torch.Tensor = states[packed.candidate_ends].float() @ self.direction
        return scores


class GradeTokens(torch.nn.Module):
    """score = Σ softmax(logits of "1", "2", …) · grade, by the language model's own output map; nothing is trained.

    Args:
        rows: (G, D) float32 of the output map.
        grades: (G,) the rating scale, lowest first.
    """

    rows: torch.Tensor
    grades: torch.Tensor

    def __init__(self, rows: torch.Tensor, grades: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("grades", torch.tensor(grades, dtype=torch.float32))

    def logits(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK, G) float32 from the states (L, D) at the end of each candidate."""
        return states[packed.candidate_ends].float() @ self.rows.T

    def forward(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) expected ratings."""
        return expected(self.logits(states, packed), self.grades)


class DecoderReranker(PackedReranker[DecoderConfig]):
    """Reranker of the Llama family: the history's keys and values are computed once and kept for its next request."""

    kind: ClassVar[str] = "decoder"
    config_type = DecoderConfig
    causal = True
    model_types = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma"})

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.cache = PrefixCache(self.config.prefix_cache_mb * 2**20)

    @classmethod
    def read_backbone(cls, model_dir: Path, config: DecoderConfig) -> Any:
        """The model with its output map."""
        return AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            attn_implementation=NAME,
            dtype=torch.float32,
            local_files_only=True,
            **loading_options(config.quantization),
        )

    @classmethod
    def new_head(cls, backbone: Any, config: DecoderConfig) -> YesNo | GradeTokens:
        """By the rows of "yes" and "no", or of the numbers that stand for the grades."""
        tokenizer = _tokenizer(Path(backbone.config._name_or_path))
        output = backbone.get_output_embeddings().weight.detach().float().cpu()
        if config.grades:
            numbers = [_one_token(tokenizer, str(number + 1)) for number in range(len(config.grades))]
            return GradeTokens(output[numbers], config.grades)
        yes, no = yes_and_no(tokenizer)
        return YesNo(output[yes] - output[no])

    @classmethod
    def new_prompter(cls, model_dir: Path, config: DecoderConfig) -> Prompter:
        """In plain words."""
        tokenizer = _tokenizer(model_dir)
        return Prompter(tokenizer, config.prompt, decoder_wording(tokenizer, grades=len(config.grades)))

    def states(self, packed: Packed, row: Row) -> torch.Tensor:
        """(L, D) of the last layer, after its norm."""
        model = plain(self.backbone)
        positions, virtual = packed.position_ids[None], None
        if is_prefix(self.backbone):
            virtual = self.backbone.get_prompt(batch_size=1)
            positions = positions + virtual.get_seq_length()
        found: torch.Tensor = model.model(
            input_ids=packed.input_ids[None],
            position_ids=positions,
            past_key_values=virtual,
            row=row,
            use_cache=False,
        ).last_hidden_state[0]
        return found

    def scores_of(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) float32 by the head."""
        scores: torch.Tensor = self.head(states, packed)
        return scores

    def forget(self) -> None:
        """Drops all prefixes."""
        self.cache.clear()

    def remembered(self, prompt: Prompt) -> PrefixStates | None:
        """From the cache, in the type that requests are scored in."""
        return self.cache.get(prompt.prefix, self.scoring_type)

    def score_row(
        self, parts: Sequence[Prompt], autocast: torch.dtype | None, held: Sequence[PrefixStates | None]
    ) -> tuple[list[Scores], list[int]]:
        """As the base, with prefixes that are held or in the cache, where new ones go."""
        known = [states or self.cache.get(part.prefix, autocast) for part, states in zip(parts, held, strict=True)]
        packed = pack(parts, known, device=self.device)
        row = self.row_of(packed, remember=self.cache.max_bytes > 0)
        flat = self.row_scores(packed, row, autocast=autocast)
        for place, (part, states) in enumerate(zip(parts, known, strict=True)):
            if row.remember and states is None:
                self.cache.put(part.prefix, autocast, row.prefix_states(place))
        cached = [0 if states is None else len(part.prefix) for part, states in zip(parts, known, strict=True)]
        return split(flat, packed), cached


def yes_and_no(tokenizer: Any) -> tuple[int, int]:
    """Ids of the two answers.

    Raises:
        BadInput: when one of them is not a single token.
    """
    return _one_token(tokenizer, YES), _one_token(tokenizer, NO)


def _tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)


def _one_token(tokenizer: Any, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise BadInput(
            f"this model's tokenizer has no single token for {word.strip()!r} but {pieces}, and a decoder reranker"
            " answers with one: choose another model"
        )
    return int(ids[0])
