"""Several pairs of towers as one: their vectors stand side by side, so that one search adds their scores up."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from data.schema import Histories, Rows, Scores
from retrieval.towers import TwoTowers
from retrieval.user_tower import UserTowerKind


@dataclass(frozen=True)
class Member:
    """One trained pair of towers."""

    kind: UserTowerKind
    copy: int
    towers: TwoTowers

    @property
    def name(self) -> str:
        """As in "sequence-2"."""
        return f"{self.kind}-{self.copy}"


@dataclass(frozen=True)
class TowerEnsemble:
    """Trained towers whose scores are averaged by kind, and the kinds weighed.

    The inner product of concatenated vectors is the sum of the inner products, and the weights stand on
    the user's side: an index built once serves any weights.

    Attributes:
        weights: kind → weight of its mean score in the search.
    """

    members: tuple[Member, ...]
    weights: Mapping[UserTowerKind, float]

    @property
    def kinds(self) -> tuple[UserTowerKind, ...]:
        """Those that have a member, in order."""
        return tuple(dict.fromkeys(member.kind for member in self.members))

    @property
    def history_items(self) -> int:
        """The longest history that a member reads."""
        return max(member.towers.user.history_items for member in self.members)

    @cached_property
    def _starts(self) -> list[int]:
        """Where each member's dimensions begin, and where the last one's end."""
        return [0, *accumulate(member.towers.item.dimension for member in self.members)]

    @property
    def text(self) -> Scores:
        """(N, E + K) float32, what they read of the items' texts."""
        return self.members[0].towers.text.cpu().numpy()

    def item_vectors(self, rows: Rows | None = None) -> Scores:
        """(N, ΣD) float32, the vectors to be indexed, or those at `rows` alone."""
        return np.concatenate([member.towers.item_vectors(rows) for member in self.members], axis=1)

    def user_vectors(self, histories: Histories, item_vectors: Scores) -> Scores:
        """(B, ΣD) float32, each kind's mean, without the weights of the kinds; item vectors as `item_vectors` gives."""
        copies = [sum(other.kind is member.kind for other in self.members) for member in self.members]
        parts = [
            member.towers.user_vectors(histories, item_vectors[:, start:end]) / np.float32(of)
            for member, of, start, end in zip(self.members, copies, self._starts, self._starts[1:], strict=False)
        ]
        return np.concatenate(parts, axis=1)

    def weighted(self, users: Scores) -> Scores:
        """(B, ΣD) user vectors with the weights of the kinds, for the search."""
        scale = [np.full(member.towers.item.dimension, self.weights[member.kind]) for member in self.members]
        return np.asarray(users * np.concatenate(scale), dtype=np.float32)

    def scores(self, users: Scores, item_vectors: Scores, rows: Rows) -> dict[str, Scores]:
        """Kind → (B, K) scores of the items at `rows` (B, K), from (B, ΣD) user and (N, ΣD) item vectors."""
        columns = {kind: np.zeros(rows.shape, dtype=np.float32) for kind in self.kinds}
        # A user at a time, so that the gathered vectors stay in the cache.
        for user in range(len(users)):
            gathered = item_vectors[rows[user]]  # (K, ΣD)
            for member, start, end in zip(self.members, self._starts, self._starts[1:], strict=False):
                columns[member.kind][user] += gathered[:, start:end] @ users[user, start:end]
        return {str(kind): scores for kind, scores in columns.items()}
