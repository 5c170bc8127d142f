"""A bidirectional encoder with an adapter that scores packed candidates."""

from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModel, AutoTokenizer

from rerank.head import GradedPairHead, PairHead
from rerank.packed import PackedConfig, PackedReranker
from rerank.packing import Packed
from rerank.prompt import Prompter, bert_wording
from rerank.shared_prefix import NAME, Row


class EncoderConfig(PackedConfig):
    """The shape of an encoder reranker."""

    head_width: int = Field(128, ge=1, description="hidden units of the head's MLP")
    start_temperature: float = Field(5.0, gt=0, description="factor of the cosine before training")
    start_decay: float = Field(
        0.8, gt=0, lt=1, description="weight of a history item over the next more recent one, before training"
    )


class EncoderReranker(PackedReranker[EncoderConfig]):
    """Reranker of the BERT family; see `PairHead` for the score. Untrained it ranks by the encoder's cosine."""

    kind: ClassVar[str] = "encoder"
    config_type = EncoderConfig
    causal = False
    model_types = frozenset({"bert"})

    @classmethod
    def read_backbone(cls, model_dir: Path, config: EncoderConfig) -> Any:
        """The model without a head of its own; dropout of its own would fight the adapter's."""
        return AutoModel.from_pretrained(
            str(model_dir),
            config=AutoConfig.from_pretrained(
                str(model_dir), attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, local_files_only=True
            ),
            attn_implementation=NAME,
            dtype=torch.float32,
            local_files_only=True,
        )

    @classmethod
    def new_head(cls, backbone: Any, config: EncoderConfig) -> PairHead:
        """Its last layer starts at zero."""
        shape: dict[str, Any] = {
            "width": config.head_width,
            "temperature": config.start_temperature,
            "decay": config.start_decay,
        }
        if config.grades:
            return GradedPairHead(backbone.config.hidden_size, **shape, grades=config.grades)
        return PairHead(backbone.config.hidden_size, **shape)

    @classmethod
    def new_prompter(cls, model_dir: Path, config: EncoderConfig) -> Prompter:
        """With `[CLS]` and `[SEP]` around the texts."""
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
        return Prompter(tokenizer, config.prompt, bert_wording(tokenizer))

    def damp(self, factor: float) -> bool:
        """In the head."""
        cast(PairHead, self.head).damp(factor)
        return True

    def states(self, packed: Packed, row: Row) -> torch.Tensor:
        """(L, D) of the last layer."""
        found: torch.Tensor = self.backbone(
            input_ids=packed.input_ids[None], position_ids=packed.position_ids[None], row=row
        ).last_hidden_state[0]
        return found

    def scores_of(self, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(ΣK,) float32 by the head."""
        scores: torch.Tensor = self.head(states, packed)
        return scores
