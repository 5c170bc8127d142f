"""SASRec trained with softmax over the catalog: our sequence tower on ids alone, the strongest published baseline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from baselines.base import ScoresAll, item_counts, popularity_order
from data.schema import Histories, Holdout, Rows, Scores
from retrieval.objective import samples_softmax
from retrieval.towers import SequenceConfig, TwoTowers
from retrieval.train import TrainConfig, train_towers


@dataclass(frozen=True)
class SasRec(ScoresAll):
    """Kang & McAuley 2018, with cross-entropy over all items as in Klenitskiy & Vasilev 2023.

    Attributes:
        towers: a sequence tower whose items have no text.
        item_vectors: (N, D) float32.
        order: (N,) item rows by popularity, which breaks ties.
        epochs: of its schedule, after which validation found it best.
        schedule_share: how far these went in the schedule, where the budget hastened it; else 0.
    """

    towers: TwoTowers
    item_vectors: Scores
    order: Rows
    epochs: int
    schedule_share: float = 0.0
    name: ClassVar[str] = "sasrec"

    @classmethod
    def fit(
        cls,
        train: Histories,
        n_items: int,
        config: SequenceConfig,
        *,
        validation: Holdout,
        training: TrainConfig,
        log: Callable[[dict[str, Any]], None],
        stop_after: int | None = None,
        schedule_share: float = 0.0,
    ) -> Self:
        """Trains with early stopping on the validation users.

        Args:
            config: sizes and pace; its `text_dim` is taken to be 0.
            stop_after: epochs of the schedule, where they are known; None: all, or as validation says.
            schedule_share: how far they go in it, at least.
        """
        counts = item_counts(train, n_items)
        torch.manual_seed(training.seed)
        no_text = torch.zeros(n_items, 1)
        ids_alone = config.model_copy(update={"text_dim": 0})
        towers = TwoTowers(no_text, ids_alone, sparse=samples_softmax(counts, training.softmax))
        record = train_towers(
            towers,
            train,
            validation,
            config=training,
            name=cls.name,
            log=log,
            seed=training.seed,
            stop_after=stop_after,
            schedule_share=schedule_share,
        )
        order = popularity_order(counts)
        return cls(towers, towers.item_vectors(), order, record.best_epoch, record.schedule_share)

    def _score(self, histories: Histories) -> Scores:
        scores = np.asarray(self.towers.user_vectors(histories) @ self.item_vectors.T)
        # A transformer that never read nothing has no opinion on it: nobody's history is given what is popular.
        by_popularity = np.empty(len(self.order), dtype=np.float32)
        by_popularity[self.order] = -np.arange(len(self.order), dtype=np.float32)
        scores[histories.lengths == 0] = by_popularity
        return scores
