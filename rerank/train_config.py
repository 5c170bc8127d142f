"""How a reranker is trained: the settings that a user may change."""

import torch
from pydantic import BaseModel, ConfigDict, Field

from rerank.objective import Objective
from store.hardware import Precision, computes_bfloat16


def autocast_type(precision: Precision) -> torch.dtype | None:
    """The type that `precision` means where models run here; None for plain float32."""
    return torch.bfloat16 if computes_bfloat16(precision) else None


class RerankTrainConfig(BaseModel):
    """How a reranker is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(2, ge=1, description="passes over the examples, unless something stops earlier")
    budget_minutes: float = Field(4.0, gt=0, description="hard stop; the learning rate has fallen to 0 by then")
    objective: Objective = Field(
        Objective.LISTWISE,
        description="listwise: the item taken against the others of its list; pointwise: each alone; graded: how items "
        "were rated",
    )
    users_per_batch: int = Field(8, ge=1, description="lists in one step")
    users_per_pass: int = Field(
        4, ge=1, description="lists that are in memory together; the gradients of a step's passes are added up"
    )
    checkpointing: bool = Field(
        False,
        description="compute each layer again on the way back: a fraction of the memory, a third more time",
    )
    list_size: int = Field(16, ge=2, description="items in one list, the one taken included")
    hard_share_start: float = Field(0.0, ge=0, le=1, description="share of the retriever's candidates at first")
    hard_share_end: float = Field(0.5, ge=0, le=1, description="the same after the curriculum, and in validation")
    curriculum_share: float = Field(0.5, ge=0, le=1, description="part of the training in which the share moves")
    learning_rate: float = Field(3e-4, gt=0, description="of the adapter, at its highest")
    head_learning_rate: float = Field(1e-3, gt=0, description="of the head, at its highest")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="part of the training in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="on matrices, decoupled")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    validate_every_steps: int = Field(100, ge=1, description="steps between two validations")
    validation_lists: int = Field(
        128, ge=1, description="at most so many validation lists are used, drawn once; fewer where they would take long"
    )
    patience: int = Field(5, ge=1, description="validations without a lower loss before training stops")
    teacher_weight: float = Field(
        1.0, ge=0, le=1, description="with a teacher: how much of the loss is its, against that of the item taken"
    )
    teacher_temperature: float = Field(1.0, gt=0, description="with a teacher: softens both sides before they compare")
    precision: Precision = Field(
        Precision.AUTO,
        description="of the products in training; auto: bfloat16 on a GPU, and where the processor is faster in it",
    )
    seed: int = Field(0, ge=0, description="of the order, the negatives and the dropout")
