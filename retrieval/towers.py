"""An item tower and a user tower over one table of text vectors, and several such pairs added up."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from data.schema import Histories, Rows, Scores
from retrieval.history_reader import HistoryReader
from retrieval.item_tower import ItemTower, ItemVectors, Join, joined_width, principal_directions
from retrieval.sequence_tower import SequenceTower
from retrieval.text_tower import TextTower
from retrieval.user_tower import RecencyTower, UserTower

USERS_AT_ONCE = 256
DENSE_INTERACTIONS = 100
"""Mean interactions of a trained item from which on a transformer wants less dropout."""
DENSE_DROPOUT, SPARSE_DROPOUT = 0.2, 0.4


class TowerConfig(BaseModel):
    """Size, regularisation and pace of one kind of towers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: int = Field(1, ge=0, description="how many are trained, each from a seed of its own, and added up; 0: none")
    text_dim: int = Field(128, ge=0, description="dimensions that the text vector is mapped to; 0 for ids alone")
    residual_dim: int = Field(128, ge=0, description="dimensions learned for each id; 0 for text alone")
    join: Join = Field(Join.BESIDE, description="text and residual beside each other, or added up")
    history_items: int = Field(10, ge=1, description="most recent items that make a user vector")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout on id residuals, element by element")
    residual_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of items whose whole residual is dropped in a training step"
    )
    epochs: int = Field(5, ge=0, description="passes over all positions, at most")
    batch_size: int = Field(512, ge=1, description="positions in one step")
    learning_rate: float = Field(2e-3, gt=0, description="largest learning rate, after warm-up")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of what the softmax is taught that is even over the catalog"
    )
    temperature: float = Field(1.0, gt=0, description="by which scores are divided before the softmax of training")

    @property
    def width(self) -> int:
        """Dimensions of an item vector without its bias."""
        return joined_width(self.join, self.text_dim, self.residual_dim)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not self.text_dim and not self.residual_dim:
            raise ValueError("text_dim and residual_dim are both 0: an item would have no vector")
        if self.join is Join.SUM and self.text_dim and self.residual_dim and self.text_dim != self.residual_dim:
            raise ValueError(f"join sum needs text_dim = residual_dim, found {self.text_dim} and {self.residual_dim}")
        return self


class SequenceConfig(TowerConfig):
    """The same for a causal transformer."""

    join: Join = Field(Join.SUM, description="text and residual beside each other, or added up")
    history_items: int = Field(200, ge=1, description="longest history that is read")
    layers: int = Field(2, ge=1, description="transformer blocks")
    heads: int = Field(2, ge=1, description="attention heads of a block")
    hidden_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="dropout inside the transformer; unset: 0.4, or 0.2 from 100 interactions an item on",
    )
    epochs: int = Field(14, ge=0, description="passes over all positions, at most")
    batch_size: int = Field(768, ge=1, description="positions in one step, about")
    learning_rate: float = Field(1e-3, gt=0, description="largest learning rate, after warm-up")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"an item vector has {self.width} dimensions, which is no multiple of twice the {self.heads} heads: "
                "change text_dim and residual_dim, or heads"
            )
        return self

    def suited(self, train: Histories) -> Self:
        """The same with what is unset chosen by how much there is to learn from."""
        if self.hidden_dropout is not None:
            return self
        dense = len(train.item_rows) >= DENSE_INTERACTIONS * max(len(np.unique(train.item_rows)), 1)
        return self.model_copy(update={"hidden_dropout": DENSE_DROPOUT if dense else SPARSE_DROPOUT})


class TextConfig(TowerConfig):
    """The same for a history in words."""

    copies: int = Field(0, ge=0, description="how many are trained, each from a seed of its own, and added up; 0: none")
    max_tokens: int = Field(128, ge=8, description="tokens read of a history's text, the most recent item first")
    positions_per_user: int = Field(
        2, ge=1, description="last places of each history that are trained on: each is a text to read before training"
    )
    most_positions: int = Field(
        100_000, ge=1, description="of all users together; on a CPU some hundred are read in a second"
    )
    epochs: int = Field(10, ge=0, description="passes over all positions, at most")


class TwoTowers(nn.Module):
    """One pair of towers.

    Args:
        text: (N, E) float32, L2-normalised and mean-centred; with the topics of the items' words, where there are any.
        sparse: sparse gradients for what is learned for each id.
        reader: reads histories, for a user tower that asks for their words.
    """

    text: Tensor
    user: UserTower

    def __init__(
        self, text: Tensor, config: TowerConfig, *, sparse: bool = False, reader: HistoryReader | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("text", text, persistent=False)
        # Histories are read by the encoder alone: both sides of a text tower begin by what they share.
        both = len(reader.space.mean) if isinstance(config, TextConfig) and reader else text.shape[1]
        principal = principal_directions(text[:, :both], config.text_dim)
        self.item = ItemTower(
            len(text),
            nn.functional.pad(principal, (0, text.shape[1] - both)),
            residual_dim=config.residual_dim,
            join=config.join,
            dropout=config.dropout,
            residual_dropout=config.residual_dropout,
            sparse=sparse,
        )
        self.user = _user_tower(len(text), principal, config, sparse=sparse, reader=reader)

    def user_vectors_at(self, inputs: Tensor) -> Tensor:
        """(*targets.shape, D) from the inputs of a batch of `self.user.examples`."""
        return self.user.vectors_at(self.item, self.text, inputs)

    def item_vectors_at(self, rows: Tensor) -> Tensor:
        """(n, D) vectors of the items at `rows` (n,)."""
        vectors: Tensor = self.item(self.text, rows)
        return vectors

    def sparse_weights(self) -> list[nn.Parameter]:
        """Those whose gradients are sparse."""
        if not self.item.sparse:
            return []
        shared = [self.item.residual, self.item.bias]
        return [*shared, self.user.residual] if isinstance(self.user, RecencyTower) else shared

    @torch.no_grad()
    def settle_cold_items(self, train_count: np.ndarray, stand_ins: sp.csr_matrix | None = None) -> None:
        """Gives items without a training interaction the residual of their stand-ins, and the bias of the rarest.

        Args:
            train_count: (N,) training interactions of each item.
            stand_ins: (N, N) weights of the items that speak for each of them; no residual for those without.
        """
        cold = np.flatnonzero(train_count == 0)
        if not len(cold) or len(cold) == len(train_count):
            return
        rarest = np.flatnonzero(train_count == train_count[train_count > 0].min())
        for residual in (self.item.residual, *([self.user.residual] if isinstance(self.user, RecencyTower) else [])):
            lent = np.zeros((len(cold), residual.shape[1]), dtype=np.float32)
            if stand_ins is not None:
                lent += stand_ins[cold] @ residual.cpu().numpy()
            residual[cold] = torch.from_numpy(lent).to(residual.device)
        self.item.bias[cold] = self.item.bias[rarest].mean()

    @torch.inference_mode()
    def item_vectors(self, rows: Rows | None = None) -> Scores:
        """(N, D) float32, the vectors to be indexed, or those at `rows` alone."""
        self.eval()
        wanted = torch.arange(len(self.text)) if rows is None else torch.from_numpy(rows)
        return self.item_vectors_at(wanted.to(self.text.device)).cpu().numpy()

    @torch.no_grad()
    def over(self, text: Scores, retold: Mapping[int, str]) -> "TwoTowers":
        """The same towers over a catalog with other texts or more items, for use and not for training.

        Args:
            text: (N', E) what they read of each item's text, N' ≥ N; items beyond N have no residual until they are
                settled.
            retold: row → text, of the items that are new or have another text.
        """
        # In place of ours in the copy: the text vectors, by far the largest part, and who reads histories.
        instead: dict[int, Any] = {id(self.text): torch.from_numpy(text).to(self.text.device)}
        if isinstance(self.user, TextTower):
            instead[id(self.user.reader)] = self.user.reader.over(retold, n_items=len(text))
        towers = copy.deepcopy(self, instead)
        more = len(text) - len(self.text)
        towers.item.residual = _longer(towers.item.residual, more)
        towers.item.bias = _longer(towers.item.bias, more)
        if isinstance(towers.user, RecencyTower):
            towers.user.residual = _longer(towers.user.residual, more)
        return towers

    @torch.inference_mode()
    def user_vectors(self, histories: Histories, item_vectors: Scores | None = None) -> Scores:
        """(B, D) float32.

        Args:
            item_vectors: (N, D) what `item_vectors` gives, where it is at hand: spares computing it of the histories.
        """
        # Walking through all modules takes longer than a short history.
        if self.training:
            self.eval()
        items: ItemVectors = self.item
        if item_vectors is not None:
            items = _Table(torch.from_numpy(item_vectors))
        # By length: a batch is as wide as its longest history, and of few enough users for their activations.
        order = np.argsort(histories.lengths, kind="stable")
        vectors = np.empty((len(histories), self.item.dimension), dtype=np.float32)
        for start in range(0, len(order), USERS_AT_ONCE):
            users = order[start : start + USERS_AT_ONCE]
            part = histories.take(users)
            recent = torch.from_numpy(part.last(self.user.history_items)).to(self.text.device)
            vectors[users] = self.user.forward(items, self.text, recent, part.about).cpu().numpy()
        return vectors


@dataclass(frozen=True)
class _Table:
    """Item vectors (N, D) computed before."""

    vectors: Tensor

    def __call__(self, text: Tensor, rows: Tensor) -> Tensor:
        """(n, D) of the items at `rows` (n,)."""
        return self.vectors[rows]


def _longer(table: nn.Parameter, more: int) -> nn.Parameter:
    """With so many rows of noughts at its end."""
    return nn.Parameter(torch.cat([table, table.new_zeros(more, table.shape[1])]))


def _user_tower(
    n_items: int, principal: Tensor, config: TowerConfig, *, sparse: bool, reader: HistoryReader | None
) -> UserTower:
    if isinstance(config, TextConfig):
        if reader is None:
            raise ValueError("a text tower needs a reader of histories")
        return TextTower(
            config.width,
            principal,
            reader=reader,
            history_items=config.history_items,
            positions_per_user=config.positions_per_user,
            most_positions=config.most_positions,
        )
    if isinstance(config, SequenceConfig):
        return SequenceTower(
            config.width,
            layers=config.layers,
            heads=config.heads,
            history_items=config.history_items,
            dropout=SPARSE_DROPOUT if config.hidden_dropout is None else config.hidden_dropout,
        )
    return RecencyTower(
        n_items,
        principal,
        residual_dim=config.residual_dim,
        join=config.join,
        history_items=config.history_items,
        dropout=config.dropout,
        sparse=sparse,
    )
