"""What each part of the first stage is worth: python bench/ablation.py --data DIR.

DIR holds interactions.parquet and items.parquet; results: bench/results/ablation.json. Leave one out: everything is
fitted on the training part, towers and fusions are selected on group B's validation items, and the table judges users
of group A by theirs; the test part is not looked at. The catalog is read once, and towers that several rows need are
trained once, each for at most `--minutes`. Prints a Markdown table, and writes each row as soon as it is there.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from baselines.base import batched_candidates
from bench.record import ROOT, record
from config import resolved_config
from data.schema import Candidates, Histories, Holdout, Scores
from eval.protocol import CatalogStats, evaluate
from eval.significance import paired_bootstrap
from fusion.linear import LinearFusion
from index.faiss_index import FlatIndex
from pipeline.evaluate import drawn_by_hash
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import base_text_vectors
from pipeline.workspace import Workspace
from retrieval.encode import TextSpace, load_encoder
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.finetune import EncoderTuner, FinetuneConfig, FinetuneMethod
from retrieval.fit import drawn
from retrieval.groundwork import Groundwork
from retrieval.history_reader import HistoryReader
from retrieval.mining import MiningConfig
from retrieval.objective import Softmax, samples_softmax
from retrieval.retriever import TRANSITIONS, Retriever
from retrieval.towers import TwoTowers
from retrieval.train import train_towers
from retrieval.user_tower import UserTowerKind
from retrieval.weighing import fitted_fusion, with_fitted_fusion
from store.artifacts import Run

TOP = 100
METRICS = ("ndcg@10", "recall@10", "recall@100")
RECENCY, SEQUENCE, WORDED = UserTowerKind.RECENCY, UserTowerKind.SEQUENCE, UserTowerKind.TEXT
TEXT_ONLY: dict[str, Any] = {"residual_dim": 0}
IDS_ONLY: dict[str, Any] = {"text_dim": 0}


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
        name: str = "",
    ) -> Trained:
        """Towers with some settings changed, trained unless they are there.

        Args:
            vectors: (N, E) by another encoder, which `name` tells apart.
            whiten: the text vectors, besides centring them.
        """
        settings, ws = self.ws.config.retriever.suited(self.ws.split.train), self.ws
        key = json.dumps([kind, changes, training, whiten, name], default=str)
        if key not in self.trained:
            config = getattr(settings, kind).model_copy(update={"copies": 1, **(changes or {})})
            train = settings.train.model_copy(update={"budget_minutes": self.minutes, **(training or {})})
            torch.manual_seed(1)
            read = self.text_vectors if vectors is None else vectors
            text = torch.from_numpy(TextSpace.of(read, whiten=whiten)(read))
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

    def retriever(self, kinds: tuple[UserTowerKind, ...]) -> Retriever:
        """Both stages of search and all other sources over these kinds of towers, weighed by group B."""
        members = tuple(Member(kind, 1, self.towers(kind).towers) for kind in kinds)
        ensemble = TowerEnsemble(members, dict.fromkeys(kinds, 1.0))
        plain = self.groundwork.under(
            ensemble, self.text_vectors, config=self.ws.config.retriever, build_index=FlatIndex
        )
        return with_fitted_fusion(plain, self.selectors, self.log.record).retriever

    @cached_property
    def retriever_of_both(self) -> Retriever:
        """Over the two kinds of the default."""
        return self.retriever((RECENCY, SEQUENCE))

    @property
    def minutes_of_both(self) -> float:
        """Of training behind `retriever_of_both`."""
        return sum(self.towers(kind).minutes for kind in (RECENCY, SEQUENCE))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        against: the row that it is compared with, user by user.
        rank: candidates of the users asked, and the minutes of training behind them.
    """

    part: str
    words: str
    against: str
    rank: Callable[[Bench], tuple[Candidates, float]]


def _tower_row(
    part: str,
    words: str,
    against: str,
    *,
    kind: UserTowerKind,
    changes: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    whiten: bool = False,
) -> Row:
    def rank(bench: Bench) -> tuple[Candidates, float]:
        trained = bench.towers(kind, changes, training=training, whiten=whiten)
        return bench.alone(trained), trained.minutes

    return Row(part, words, against, rank)


def both_in_one_search(bench: Bench) -> tuple[Candidates, float]:
    """Towers alone, both kinds weighed."""
    return bench.retriever_of_both.search(bench.asked.histories, TOP), bench.minutes_of_both


def fused(bench: Bench) -> tuple[Candidates, float]:
    """All sources."""
    return bench.retriever_of_both.candidates(bench.asked.histories, TOP), bench.minutes_of_both


def fused_with_text(bench: Bench) -> tuple[Candidates, float]:
    """All sources, over three kinds of towers."""
    retriever = bench.retriever((RECENCY, SEQUENCE, WORDED))
    return retriever.candidates(bench.asked.histories, TOP), bench.minutes_of_both + bench.towers(WORDED).minutes


def fused_without_transitions(bench: Bench) -> tuple[Candidates, float]:
    """The towers' candidates alone, ordered by all sources but transitions, weighed anew."""
    retriever = bench.retriever_of_both
    columns = {name: how for name, how in retriever.fusion.transforms.items() if name != TRANSITIONS}

    def pool(histories: Histories) -> Candidates:
        return retriever.scored(retriever.search(histories, retriever.config.per_source).item_rows, histories)

    selectors, asked = bench.selectors, bench.asked
    fusion: LinearFusion = fitted_fusion(pool(selectors.histories), selectors.targets, columns, retriever.trend)
    found = pool(asked.histories)
    return found.ranked_by(fusion.score(found)).head(TOP), bench.minutes_of_both


def counted_alone(bench: Bench) -> tuple[Candidates, float]:
    """Transitions without any training."""
    transitions = bench.groundwork.transitions

    def score(histories: Histories) -> Scores:
        return np.asarray(transitions.scores(histories).toarray(), dtype=np.float32)

    n_items = len(bench.ws.dataset.catalog)
    return batched_candidates(score, bench.asked.histories, TOP, n_items=n_items, name="transitions"), 0.0


def tuned_encoder(bench: Bench, method: FinetuneMethod) -> tuple[Candidates, float]:
    """One round of tuning under the recency towers, which are then trained afresh on its vectors."""
    ws, settings = bench.ws, bench.ws.config.retriever
    encoder = load_encoder(
        ws.encoder.path_or_id,
        settings.encoder.model_copy(update={"precision": "float32"}),
        revision=ws.encoder.revision,
    )
    tuner = EncoderTuner(
        encoder,
        ws.dataset.catalog.texts,
        config=FinetuneConfig(method=method),
        training=settings.train,
        reading=settings.encoder,
        log=bench.log.record,
    )
    vectors = tuner.round(bench.towers(RECENCY).towers, ws.split.train, bench.text_vectors, number=1)
    trained = bench.towers(RECENCY, vectors=vectors, name=method)
    return bench.alone(trained), bench.towers(RECENCY).minutes + trained.minutes


SAMPLED = {"softmax": Softmax.SAMPLED}
FEW_DRAWN = {**SAMPLED, "sampled_items": 512}
ROWS: dict[str, Row] = {
    "recency": _tower_row("recency", "text and ids", "", kind=RECENCY),
    "recency-text": _tower_row("recency", "text alone", "recency", kind=RECENCY, changes=TEXT_ONLY),
    "recency-ids": _tower_row("recency", "ids alone", "recency", kind=RECENCY, changes=IDS_ONLY),
    "sequence": _tower_row("sequence", "text and ids", "recency", kind=SEQUENCE),
    "sequence-text": _tower_row("sequence", "text alone", "sequence", kind=SEQUENCE, changes=TEXT_ONLY),
    "sequence-ids": _tower_row("sequence", "ids alone: SASRec", "sequence", kind=SEQUENCE, changes=IDS_ONLY),
    "text": _tower_row("text", "history in words; reading not counted", "recency", kind=WORDED),
    "towers": Row("recency + sequence", "one search", "sequence", both_in_one_search),
    "transitions": Row("transitions", "counted, nothing trained", "recency", counted_alone),
    "fused": Row("all sources", "fused", "towers", fused),
    "fused-without-transitions": Row("all sources", "without transitions", "fused", fused_without_transitions),
    "fused-with-text": Row("all sources", "and text towers", "fused", fused_with_text),
    "sampled": _tower_row("recency, loss", "softmax over 4,096 drawn items", "recency", kind=RECENCY, training=SAMPLED),
    "in-batch": _tower_row(
        "recency, negatives",
        "drawn, and the step's targets",
        "sampled",
        kind=RECENCY,
        training={**SAMPLED, "in_batch_negatives": True},
    ),
    "few-drawn": _tower_row("recency, negatives", "512 drawn", "sampled", kind=RECENCY, training=FEW_DRAWN),
    "few-in-batch": _tower_row(
        "recency, negatives",
        "512 drawn, and the step's targets",
        "few-drawn",
        kind=RECENCY,
        training={**SAMPLED, "sampled_items": 512, "in_batch_negatives": True},
    ),
    "few-mined": _tower_row(
        "recency, negatives",
        "512 drawn, and 8 mined for each position",
        "few-drawn",
        kind=RECENCY,
        training={**SAMPLED, "sampled_items": 512, "hard_negatives": MiningConfig(per_position=8)},
    ),
    "smoothed": _tower_row(
        "recency, loss", "label smoothing 0.1", "recency", kind=RECENCY, changes={"label_smoothing": 0.1}
    ),
    "sequence-smoothed": _tower_row(
        "sequence, loss", "label smoothing 0.1", "sequence", kind=SEQUENCE, changes={"label_smoothing": 0.1}
    ),
    "cooler": _tower_row("recency, loss", "temperature 0.5", "recency", kind=RECENCY, changes={"temperature": 0.5}),
    "warmer": _tower_row("recency, loss", "temperature 2", "recency", kind=RECENCY, changes={"temperature": 2.0}),
    "whitened": _tower_row("recency, text", "whitened", "recency", kind=RECENCY, whiten=True),
    "lora": Row("recency, encoder", "LoRA, one round", "recency", partial(tuned_encoder, method=FinetuneMethod.LORA)),
    "full": Row(
        "recency, encoder", "all weights, one round", "recency", partial(tuned_encoder, method=FinetuneMethod.FULL)
    ),
}
SLOW = ("lora", "full")


def measure(bench: Bench, names: list[str]) -> None:
    """Each row in turn; its figures are printed and written before the next one begins."""
    stats = CatalogStats.of(bench.ws.split.train, len(bench.ws.dataset.catalog))
    data = bench.ws.run.root.name.removeprefix("ablation-")
    per_user: dict[str, np.ndarray] = {}
    print(f"| part | variant | {' | '.join(METRICS)} | against | difference of NDCG@10 | minutes |")
    print(f"|---|---|{'---|' * (len(METRICS) + 3)}", flush=True)
    for name in names:
        row = ROWS[name]
        candidates, minutes = row.rank(bench)
        found = evaluate(candidates, bench.asked, stats)
        per_user[name] = found.per_user["ndcg@10"]
        figures = {metric: round(found.metrics[metric], 5) for metric in METRICS}
        compared: dict[str, Any] = {}
        if row.against in per_user:
            test = paired_bootstrap(per_user[name], per_user[row.against])
            compared = {"against": row.against} | {
                side: round(getattr(test, side), 5) for side in ("difference", "low", "high")
            }
        print(_line(row, figures, compared, minutes), flush=True)
        with redirect_stdout(sys.stderr):  # the table has stdout to itself
            record(
                "ablation.json",
                f"ablation_{data}_{name}",
                figures["ndcg@10"],
                **figures,
                part=f"{row.part}: {row.words}",
                compared=compared,
                users=len(bench.asked),
                minutes=round(minutes, 2),
            )


def _line(row: Row, figures: Mapping[str, float], compared: Mapping[str, Any], minutes: float) -> str:
    shown = " | ".join(f"{figures[metric]:.4f}".lstrip("0") for metric in METRICS)
    difference = "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**compared) if compared else ""
    return f"| {row.part} | {row.words} | {shown} | {compared.get('against', '')} | {difference} | {minutes:.1f} |"


def opened(args: argparse.Namespace) -> Bench:
    """The data, prepared in a run of their own."""
    data = args.data.resolve()
    run = Run(ROOT / "runs" / f"ablation-{data.name}")
    log = RunLog(run, "ablation")
    config = resolved_config(None, args.settings, columns=None, template=None)
    ws = prepare(run, data / "interactions.parquet", data / "items.parquet", users=None, config=config, log=log)
    return Bench(ws, drawn_by_hash(ws.dataset.users, ws.learners, args.users), args.minutes, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training for each pair of towers, at most")
    parser.add_argument("--users", type=int, default=5000, help="of group A, who are judged")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--lora", action="store_true", help="the tuned encoders, too; slow without a GPU")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of cli.py prepare")
    args = parser.parse_args()
    measure(opened(args), args.rows or [name for name in ROWS if args.lora or name not in SLOW])


if __name__ == "__main__":
    main()
