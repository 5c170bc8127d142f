"""Towers, sources and fusions of one data set, each made once, for a bench that asks for many mixtures of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from baselines.base import batched_candidates
from data.schema import Candidates, Histories, Holdout, Scores
from index.faiss_index import FlatIndex
from pipeline.run_log import RunLog
from pipeline.train_retriever import base_text_vectors
from pipeline.workspace import Workspace
from retrieval.encode import TextSpace, load_encoder
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.fit import drawn
from retrieval.groundwork import Groundwork
from retrieval.history_reader import HistoryReader
from retrieval.mining import MiningConfig
from retrieval.objective import Softmax, samples_softmax
from retrieval.retriever import Retriever
from retrieval.topics import beside
from retrieval.towers import TwoTowers
from retrieval.train import train_towers
from retrieval.user_tower import UserTowerKind
from retrieval.weighing import with_fitted_fusion

TOP = 100
"""Candidates of each user that are judged."""
RECENCY, SEQUENCE, WORDED = UserTowerKind.RECENCY, UserTowerKind.SEQUENCE, UserTowerKind.TEXT
SAMPLED: dict[str, Any] = {"softmax": Softmax.SAMPLED}
FEW_DRAWN = {**SAMPLED, "sampled_items": 512}
FEW_MINED = {**FEW_DRAWN, "hard_negatives": MiningConfig(per_position=8)}


@dataclass(frozen=True)
class Trained:
    """One pair of towers and how long it was trained."""

    towers: TwoTowers
    minutes: float
    epochs: int


@dataclass
class Bench:
    """The data, what is counted of them, and towers trained so far.

    Attributes:
        asked: users of group A, who are judged.
    """

    ws: Workspace
    asked: Holdout
    minutes: float
    log: RunLog
    trained: dict[str, Trained] = field(default_factory=dict)

    @cached_property
    def text_vectors(self) -> Scores:
        """(N, E) by the frozen encoder."""
        return base_text_vectors(self.ws, log=self.log)

    @cached_property
    def selectors(self) -> Holdout:
        """Of group B."""
        return drawn(self.ws.selectors, self.ws.config.retriever.train)

    @cached_property
    def counts(self) -> np.ndarray:
        """(N,) training interactions of each item."""
        return np.bincount(self.ws.split.train.item_rows, minlength=len(self.ws.dataset.catalog))

    @cached_property
    def reader(self) -> HistoryReader:
        """Reads histories by the frozen encoder."""
        source = self.ws.encoder
        return HistoryReader(
            self.ws.dataset.catalog.texts,
            self.text_vectors,
            load_encoder=lambda settings: load_encoder(source.path_or_id, settings, revision=source.revision),
            config=self.ws.config.retriever.reading,
            say=self.log.say,
        )

    @cached_property
    def groundwork(self) -> Groundwork:
        """What is counted and not trained."""
        return Groundwork.lay(
            self.ws.split.train,
            self.ws.dataset.catalog,
            self.text_vectors,
            validation=self.selectors,
            config=self.ws.config.retriever,
            log=self.log.record,
        )

    def towers(
        self,
        kind: UserTowerKind,
        changes: Mapping[str, Any] | None = None,
        *,
        training: Mapping[str, Any] | None = None,
        vectors: Scores | None = None,
        whiten: bool = False,
        topics: bool = True,
        name: str = "",
    ) -> Trained:
        """Towers with some settings changed, trained unless they are there.

        Args:
            vectors: (N, E) by another encoder, which `name` tells apart.
            whiten: the text vectors, besides centring them.
            topics: let them read those of the words beside the text vectors.
        """
        settings, ws = self.ws.config.retriever.suited(self.ws.split.train), self.ws
        key = json.dumps([kind, changes, training, whiten, topics, name], default=str)
        if key not in self.trained:
            config = getattr(settings, kind).model_copy(update={"copies": 1, **(changes or {})})
            train = settings.train.model_copy(update={"budget_minutes": self.minutes, **(training or {})})
            torch.manual_seed(1)
            read = self.text_vectors if vectors is None else vectors
            table = TextSpace.of(read, whiten=whiten)(read)
            text = torch.from_numpy(beside(table, self.groundwork.topics_of_items()) if topics else table)
            reader = self.reader if kind is WORDED else None
            model = TwoTowers(text, config, sparse=samples_softmax(self.counts, train.softmax), reader=reader)
            record = train_towers(
                model,
                ws.split.train,
                self.selectors,
                stand_ins=self.groundwork.transitions.stand_ins,
                config=train,
                name=f"{kind}-1",
                log=self.log.record,
                seed=1,
            )
            self.trained[key] = Trained(model, record.minutes, record.best_epoch)
        return self.trained[key]

    def alone(self, trained: Trained) -> Candidates:
        """What one pair of towers ranks first in the whole catalog."""
        items = trained.towers.item_vectors()

        def score(histories: Histories) -> Scores:
            return np.asarray(trained.towers.user_vectors(histories) @ items.T)

        return batched_candidates(score, self.asked.histories, TOP, n_items=len(items), name="towers")

    def retriever(
        self,
        kinds: tuple[UserTowerKind, ...],
        training: Mapping[str, Any] | None = None,
        *,
        learners: Holdout | None = None,
    ) -> Retriever:
        """Both stages of search and all other sources over these kinds of towers, weighed by group B.

        Args:
            learners: who teach the network over the weighted sum; None: there is none.
        """
        members = tuple(Member(kind, 1, self.towers(kind, training=training).towers) for kind in kinds)
        ensemble = TowerEnsemble(members, dict.fromkeys(kinds, 1.0))
        plain = self.groundwork.under(
            ensemble, self.text_vectors, config=self.ws.config.retriever, build_index=FlatIndex
        )
        return with_fitted_fusion(plain, self.selectors, self.log.record, learners=learners).retriever

    @cached_property
    def others(self) -> Holdout:
        """Users of group A who are not judged."""
        everyone = self.ws.learners
        return everyone.take(np.flatnonzero(~np.isin(everyone.user_rows, self.asked.user_rows)))

    @cached_property
    def retriever_of_both(self) -> Retriever:
        """Over the two kinds of the default."""
        return self.retriever((RECENCY, SEQUENCE))

    @cached_property
    def retriever_of_both_mined(self) -> Retriever:
        """The same, both trained on few drawn and some mined negatives."""
        return self.retriever((RECENCY, SEQUENCE), FEW_MINED)

    def minutes_of_both(self, training: Mapping[str, Any] | None = None) -> float:
        """Of training behind `retriever_of_both` or the mined one."""
        return sum(self.towers(kind, training=training).minutes for kind in (RECENCY, SEQUENCE))
