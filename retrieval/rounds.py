"""Rounds of tuning the text encoder, of which the best by validation is kept, or the frozen encoder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.schema import Histories, Scores
from retrieval.distributed import ALONE, Team
from retrieval.finetune import EncoderTuner
from retrieval.towers import TwoTowers
from store.checkpoint import Checkpoints


@dataclass(frozen=True)
class Tuned:
    """The best of all rounds.

    Attributes:
        number: of the round, from 1; 0 is the frozen encoder.
        towers: trained on the vectors of that round.
        text_vectors: (N, E) float32 of length 1.
        encoder: the SentenceTransformer of that round, without adapters; None for the frozen one.
        ndcg10: the validation figure of every round, that of the frozen encoder first.
    """

    number: int
    towers: TwoTowers
    text_vectors: Scores
    encoder: Any | None
    ndcg10: list[float]


@dataclass
class FinishedRound:
    """What a round left, as a checkpoint keeps it.

    Attributes:
        weights: all that is tuned of the encoder.
        vectors: (N, E) of the catalog by it.
    """

    number: int
    weights: Sequence[Tensor]
    vectors: Tensor

    @property
    def place(self) -> str:
        """See Resumable."""
        return f"round {self.number} of tuning"

    def faults(self) -> list[str]:
        """See Resumable; a round ends with finite weights."""
        return []

    def parts(self) -> dict[str, Any]:
        """See Resumable."""
        return {"weights": list(self.weights), "vectors": self.vectors}

    def restore(self, parts: Mapping[str, Any]) -> None:
        """See Resumable."""
        found = [weight.shape for weight in (*parts["weights"], parts["vectors"])]
        if found != [weight.shape for weight in (*self.weights, self.vectors)]:
            raise ValueError("weights of other shapes")
        self.weights, self.vectors = parts["weights"], parts["vectors"]


def tune_encoder(
    tuner: EncoderTuner,
    train: Histories,
    text_vectors: Scores,
    *,
    fit_towers: Callable[[Scores, int], tuple[TwoTowers, float]],
    rounds: int,
    selects: bool,
    minutes_a_round: float = math.inf,
    checkpoints: Callable[[str], Checkpoints] | None = None,
    team: Team = ALONE,
) -> Tuned:
    """Frozen, then `rounds` rounds, each judged by towers trained afresh on its vectors; the best one.

    Towers trained on from where they were would overfit, and towers used as they are would not know the new
    vectors: each round has the same chance, and the same seed. Of a team only the leader tunes; the others have
    its vectors, and in the end its encoder.

    Args:
        train: what the towers are trained on.
        text_vectors: (N, E) of length 1, by the encoder before tuning.
        fit_towers: text vectors and the number of their round → new towers and their validation NDCG@10.
        rounds: how many; for a repetition without validation, the number of the best round back then.
        selects: false keeps the last round, where nobody is there to validate it.
        minutes_a_round: see `EncoderTuner.round`.
        checkpoints: gives the place where a round is kept until all is done.

    Raises:
        NotFinite: as `EncoderTuner.round`.
    """
    towers, ndcg10 = fit_towers(text_vectors, 0)
    figures, best, weights = [ndcg10], Tuned(0, towers, text_vectors, None, []), tuner.weights()
    for number in range(1, rounds + 1):
        kept = checkpoints(f"tuning-{number}") if checkpoints else None
        tune = partial(
            _round, tuner, towers, train, text_vectors, number=number, budget_minutes=minutes_a_round, kept=kept
        )
        text_vectors = team.array_from_leader(tune, like=text_vectors)
        towers, ndcg10 = fit_towers(text_vectors, number)
        tuner.log({"stage": "finetune", "round": number, "validation_ndcg@10": ndcg10, "best_before": max(figures)})
        if not selects or ndcg10 > max(figures):
            best, weights = Tuned(number, towers, text_vectors, None, []), tuner.weights()
        figures.append(ndcg10)
    encoder = None
    if best.number:
        encoder = tuner.finished(weights)
        team.broadcast_weights(encoder)
    return Tuned(best.number, best.towers, best.text_vectors, encoder, figures)


def _round(
    tuner: EncoderTuner,
    towers: TwoTowers,
    train: Histories,
    text_vectors: Scores,
    *,
    number: int,
    budget_minutes: float,
    kept: Checkpoints | None,
) -> Scores:
    """One more round, unless it was made before a kill."""
    made = FinishedRound(number, tuner.weights(), torch.from_numpy(text_vectors))
    if kept is not None and kept.resume(made):
        tuner.take(made.weights)
        return made.vectors.numpy()
    vectors = tuner.round(towers, train, text_vectors, number=number, budget_minutes=budget_minutes)
    if kept is not None:
        kept.save(FinishedRound(number, tuner.weights(), torch.from_numpy(vectors)))
    return vectors
