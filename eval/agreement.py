"""How far scores by cheaper arithmetic agree with exact ones, over the same users and items."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.schema import Mask, Scores


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one way to count with another.

    Attributes:
        largest_difference: of a score.
        kendall_tau: τ-b of the two orders of a user's items, mean over the users whose items are not all tied in one
            of them; 1 where all users' are.
    """

    largest_difference: float
    kendall_tau: float

    @classmethod
    def of(cls, scores: Scores, exact: Scores, present: Mask) -> "Agreement":
        """From (B, K) scores of the same items in the same places.

        Args:
            present: (B, K) where there is an item.
        """
        pairs = zip(scores, exact, present, strict=True)
        taus = [tau for ours, theirs, there in pairs if (tau := _tau_b(ours[there], theirs[there])) is not None]
        return cls(
            largest_difference=float(np.abs(scores - exact)[present].max(initial=0.0)),
            kendall_tau=float(np.mean(taus)) if taus else 1.0,
        )


def _tau_b(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float | None:
    """Kendall 1945: (concordant − discordant pairs) / √(pairs untied in one · pairs untied in the other)."""
    ones, others = np.sign(one[:, None] - one), np.sign(other[:, None] - other)  # (k, k), every pair twice
    untied = float((ones**2).sum()) * float((others**2).sum())
    return float((ones * others).sum()) / float(np.sqrt(untied)) if untied else None
