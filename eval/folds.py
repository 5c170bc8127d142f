"""Cross-validation over users: everybody is scored by what was fitted without them."""

from collections.abc import Callable, Iterator

import numpy as np

from data.schema import Candidates, Histories, Rows, Scores
from eval.metrics import PerUser, ndcg10

FOLDS = 5


def folds(users: int) -> Iterator[tuple[Rows, Rows]]:
    """Places of the users to fit on, and of those to score, for each fold; a place decides its fold.

    Everybody is scored once. For a single user there is nobody to fit on: the first of the pair is empty then.
    """
    fold = np.arange(users) % FOLDS
    for left_out in range(min(FOLDS, users)):
        yield np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)


def crossed_ndcg10(
    candidates: Candidates,
    targets: Histories,
    fit: Callable[[Candidates, Histories], Callable[[Candidates], Scores]],
) -> PerUser:
    """(B,) NDCG@10 of each user's candidates, ranked by scores that were fitted on the other folds.

    Args:
        candidates: (B, K).
        fit: candidates and targets of some users, or of none → what gives (b, K) scores to those of others.
    """
    reached = np.zeros(len(candidates))
    for inside, outside in folds(len(candidates)):
        score = fit(candidates.take(inside), targets.take(inside))
        asked = candidates.take(outside)
        reached[outside] = ndcg10(asked.ranked_by(score(asked)), targets.take(outside))
    return reached
