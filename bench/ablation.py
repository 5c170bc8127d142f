"""What each part of the first stage is worth: python bench/ablation.py --data DIR.

DIR holds interactions.parquet and items.parquet; results: bench/results/ablation.json. Leave one out: everything is
fitted on the training part, towers and fusions are selected on group B's validation items, and the table judges users
of group A by theirs; others of group A teach the network over the sources. The test part is not looked at. The catalog
is read once, and towers that several rows need are trained once, each for at most `--minutes`. Prints a Markdown table,
and writes each row as soon as it is there.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from baselines.base import batched_candidates
from bench.ablated import FEW_DRAWN, FEW_MINED, RECENCY, SAMPLED, SEQUENCE, TOP, WORDED, Bench
from bench.record import ROOT, record
from config import resolved_config
from data.schema import Candidates, Histories, Scores
from eval.protocol import CatalogStats, evaluate
from eval.significance import paired_bootstrap
from fusion.linear import LinearFusion
from pipeline.evaluate import drawn_by_hash
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from retrieval.encode import load_encoder
from retrieval.finetune import EncoderTuner, FinetuneConfig, FinetuneMethod
from retrieval.retriever import TRANSITIONS
from retrieval.user_tower import UserTowerKind
from retrieval.weighing import fitted_fusion
from store.artifacts import Run

METRICS = ("ndcg@10", "recall@10", "recall@100")
TEXT_ONLY: dict[str, Any] = {"residual_dim": 0}
IDS_ONLY: dict[str, Any] = {"text_dim": 0}


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
    topics: bool = True,
) -> Row:
    def rank(bench: Bench) -> tuple[Candidates, float]:
        trained = bench.towers(kind, changes, training=training, whiten=whiten, topics=topics)
        return bench.alone(trained), trained.minutes

    return Row(part, words, against, rank)


def both_in_one_search(bench: Bench) -> tuple[Candidates, float]:
    """Towers alone, both kinds weighed."""
    return bench.retriever_of_both.search(bench.asked.histories, TOP), bench.minutes_of_both()


def fused(bench: Bench) -> tuple[Candidates, float]:
    """All sources."""
    return bench.retriever_of_both.candidates(bench.asked.histories, TOP), bench.minutes_of_both()


def fused_by_network(bench: Bench) -> tuple[Candidates, float]:
    """All sources, the first places ordered by a network that other users of group A taught."""
    retriever = bench.retriever((RECENCY, SEQUENCE), learners=bench.others)
    return retriever.candidates(bench.asked.histories, TOP), bench.minutes_of_both()


def both_mined(bench: Bench) -> tuple[Candidates, float]:
    """Towers alone, both kinds weighed, on mined negatives."""
    return bench.retriever_of_both_mined.search(bench.asked.histories, TOP), bench.minutes_of_both(FEW_MINED)


def fused_mined(bench: Bench) -> tuple[Candidates, float]:
    """All sources over towers on mined negatives."""
    return bench.retriever_of_both_mined.candidates(bench.asked.histories, TOP), bench.minutes_of_both(FEW_MINED)


def fused_with_text(bench: Bench) -> tuple[Candidates, float]:
    """All sources, over three kinds of towers."""
    retriever = bench.retriever((RECENCY, SEQUENCE, WORDED))
    return retriever.candidates(bench.asked.histories, TOP), bench.minutes_of_both() + bench.towers(WORDED).minutes


def fused_without_transitions(bench: Bench) -> tuple[Candidates, float]:
    """The towers' candidates alone, ordered by all sources but transitions, weighed anew."""
    retriever = bench.retriever_of_both
    columns = {name: how for name, how in retriever.fusion.transforms.items() if name != TRANSITIONS}

    def pool(histories: Histories) -> Candidates:
        return retriever.scored(retriever.search(histories, retriever.config.per_source).item_rows, histories)

    selectors, asked = bench.selectors, bench.asked
    fusion: LinearFusion = fitted_fusion(pool(selectors.histories), selectors.targets, columns, retriever.trend)
    found = pool(asked.histories)
    return found.ranked_by(fusion.score(found)).head(TOP), bench.minutes_of_both()


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
        topics=bench.groundwork.topics_of_items(),
        log=bench.log.record,
    )
    vectors = tuner.round(bench.towers(RECENCY).towers, ws.split.train, bench.text_vectors, number=1)
    trained = bench.towers(RECENCY, vectors=vectors, name=method)
    return bench.alone(trained), bench.towers(RECENCY).minutes + trained.minutes


ROWS: dict[str, Row] = {
    "recency": _tower_row("recency", "text and ids", "", kind=RECENCY),
    "recency-text": _tower_row("recency", "text alone", "recency", kind=RECENCY, changes=TEXT_ONLY),
    "recency-ids": _tower_row("recency", "ids alone", "recency", kind=RECENCY, changes=IDS_ONLY),
    "recency-no-topics": _tower_row("recency", "text by the encoder alone", "recency", kind=RECENCY, topics=False),
    "sequence": _tower_row("sequence", "text and ids", "recency", kind=SEQUENCE),
    "sequence-text": _tower_row("sequence", "text alone", "sequence", kind=SEQUENCE, changes=TEXT_ONLY),
    "sequence-ids": _tower_row("sequence", "ids alone: SASRec", "sequence", kind=SEQUENCE, changes=IDS_ONLY),
    "sequence-no-topics": _tower_row("sequence", "text by the encoder alone", "sequence", kind=SEQUENCE, topics=False),
    "text": _tower_row("text", "history in words; reading not counted", "recency", kind=WORDED),
    "towers": Row("recency + sequence", "one search", "sequence", both_in_one_search),
    "transitions": Row("transitions", "counted, nothing trained", "recency", counted_alone),
    "fused": Row("all sources", "weighted sum", "towers", fused),
    "network": Row("all sources", "weighted sum, and the network over it", "fused", fused_by_network),
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
        training={**FEW_DRAWN, "in_batch_negatives": True},
    ),
    "few-mined": _tower_row(
        "recency, negatives",
        "512 drawn, and 8 mined for each position",
        "few-drawn",
        kind=RECENCY,
        training=FEW_MINED,
    ),
    "sequence-few-mined": _tower_row(
        "sequence, negatives",
        "512 drawn, and 8 mined for each position",
        "sequence",
        kind=SEQUENCE,
        training=FEW_MINED,
    ),
    "towers-few-mined": Row("recency + sequence, negatives", "512 drawn, 8 mined", "towers", both_mined),
    "fused-few-mined": Row("all sources, negatives", "512 drawn, 8 mined", "fused", fused_mined),
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
