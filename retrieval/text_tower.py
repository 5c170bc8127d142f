"""The history in words, read by the sentence-transformer: what items are like, whoever else took them."""

import torch
from torch import Tensor, nn

from data.schema import NO_ITEM, Histories, Words
from retrieval.examples import Examples, Readings
from retrieval.history_reader import HistoryReader
from retrieval.item_tower import RESIDUAL_SPREAD, ItemVectors, LinearMap


class TextTower(nn.Module):
    """User vectors as a linear map of the vector of the history's text; the encoder stays as it is.

    Every position is a text to read, so training reads the last places of each history, once, before it begins.

    Args:
        width: dimensions of an item vector without its bias.
        text_map: (≤ width, E), the map of text vectors before training; further dimensions begin small, at random.
        reader: reads histories; no part of what is learnt or saved.
        history_items: H, most recent items whose texts are joined.
        positions_per_user: last places of each history that are trained on.
        most_positions: of all users together, drawn by chance beyond that.
    """

    def __init__(
        self,
        width: int,
        text_map: Tensor,
        *,
        reader: HistoryReader,
        history_items: int,
        positions_per_user: int,
        most_positions: int,
    ) -> None:
        super().__init__()
        self.reader, self.history_items = reader, history_items
        self.positions_per_user, self.most_positions = positions_per_user, most_positions
        beyond = torch.randn(width - len(text_map), text_map.shape[1]) * RESIDUAL_SPREAD
        self.text_map = LinearMap(torch.cat([text_map, beyond]))
        self.offset = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def examples(self, train: Histories) -> Examples:
        """See UserTower; reads the texts."""
        return Readings.of(
            train,
            self.history_items,
            self.reader.vectors,
            last=self.positions_per_user,
            most=self.most_positions,
        )

    def vectors_at(self, items: ItemVectors, text: Tensor, inputs: Tensor) -> Tensor:
        """(B, D) from (B, E) vectors of histories that were read before."""
        mapped = self.text_map(inputs) * self.log_scale.exp() + self.offset
        return torch.cat([mapped, mapped.new_ones(len(mapped), 1)], dim=1)

    def forward(self, items: ItemVectors, text: Tensor, history_rows: Tensor, about: Words | None = None) -> Tensor:
        """See UserTower."""
        read = torch.from_numpy(self.reader.vectors(history_rows.cpu().numpy(), about)).to(self.offset.device)
        vectors = self.vectors_at(items, text, read)
        # Who has taken nothing is offered what is popular: the last dimension alone stays.
        present = (history_rows != NO_ITEM).any(dim=1, keepdim=True)
        return torch.cat([vectors[:, :-1] * present, vectors[:, -1:]], dim=1)
