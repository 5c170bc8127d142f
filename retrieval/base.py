"""What every source of candidates promises: towers, counts, baselines and fusions alike."""

from typing import Protocol

from data.schema import Candidates, Histories


class CandidateSource(Protocol):
    """Fitted on a training log; ranks the whole catalog for any history, also one it never saw."""

    @property
    def name(self) -> str:
        """What tables, reports and `Candidates.sources` call it."""
        ...

    def candidates(self, histories: Histories, depth: int, *, exclude_known: bool = True) -> Candidates:
        """The `depth` best items for each history, best first; ties by a fixed rule, so equal runs agree.

        Args:
            histories: B lists of item rows, oldest first, possibly empty.
            depth: K, at least 1.
            exclude_known: leave out the items of each history.

        Returns:
            Candidates of shape (B, K) with this source's score under its name; a list holds fewer than K
            items only where fewer exist.
        """
        ...
