"""Ways to make a reranker worth its tokens, each tried on validation; results in bench/results/rerank-tries.json.

python bench/rerank_tries.py [NAME …] [--minutes N] [--data DIR --label NAME]: MovieLens-100k unless told otherwise;
without names, all of them, one training each behind one retriever. The test part is not looked at.

LABEL_try_NAME: relative gain in NDCG@10 of the fusion over retrieval alone on group B, weights by cross-validation over
users; "used" tells whether that was enough for a weight. With so many tries the best one is too good by chance: what
is chosen here is to be confirmed by bench/rerank_quality.py, once.

"both" trains a reranker of each of --models behind one retriever, for --minutes each, and weighs their scores as two
columns beside retrieval's: NDCG@10 of each alone and of both, by the same cross-validation, and the weights of those
that earn one. Its gain is that of both, kept or not. The product serves one reranker.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.record import ROOT, record
from bench.several_rerankers import fit_several
from bench.steps import files_of, published_reranker, settings, step
from data.schema import Candidates, Holdout
from eval.metrics import PerUser
from pipeline.train_reranker import TRAINING_CANDIDATES
from pipeline.train_retriever import open_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from recommend.release import load_model
from rerank.fit import retrieval_column, with_reranker_scores
from rerank.fusion import RERANKER, RETRIEVAL
from store.assets import ASSETS, fetch

FILE = "rerank-tries.json"
LONG = (
    "reranker.encoder.prompt.max_history_items=20",
    "reranker.encoder.prompt.max_history_tokens=440",
    "reranker.encoder.prompt.max_item_tokens=36",
    "reranker.encoder.prompt.max_candidate_tokens=36",
)
"""Room for category and brand behind a long title, and for more items."""
TRANSITIONS, RANK = (f"reranker.encoder.prompt.hint={kind}" for kind in ("transitions", "rank"))
PAIRS = ("reranker.pairs_share=0.3", "reranker.easy_share=0.3")
TRIES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "rank": (RANK,),
    "transitions": (TRANSITIONS,),
    "anew_with_transitions": (TRANSITIONS, "reranker.residual=false", "reranker.easy_share=0.2"),
    "pairs": PAIRS,
    "pairs_and_transitions": (*PAIRS, TRANSITIONS),
    "long": LONG,
    "earlier": ("reranker.earlier_targets=5", "reranker.easy_share=0.2"),
    "earlier_with_transitions": ("reranker.earlier_targets=5", "reranker.easy_share=0.2", TRANSITIONS),
    "graded": ("reranker.train.objective=graded", "reranker.positions_per_user=8"),
    "small_steps": ("reranker.train.users_per_batch=2", "reranker.train.learning_rate=1e-4"),
    "fast": ("reranker.train.learning_rate=1e-3", "reranker.encoder.adapter.kind=dora"),
    "from_fused": ("reranker.teacher=retrieval", "reranker.residual=false"),
    "decoder": ("reranker.model=smollm2-135m-q4_1",),
}
"""Name → settings beside the defaults."""
BOTH = "both"
MODELS = ("minilm-l6", "smollm2-135m-q4_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*TRIES, BOTH]))
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training")
    parser.add_argument("--data", help="a folder of interactions.parquet and items.parquet")
    parser.add_argument("--label", default="ml100k", help="of the data")
    parser.add_argument("--models", nargs=2, default=MODELS, help='of the two rerankers of "both"')
    args = parser.parse_args()
    if unknown := set(args.names) - {*TRIES, BOTH}:
        parser.error(f"no such try: {', '.join(sorted(unknown))}; there are {', '.join([*TRIES, BOTH])}")
    folder = Path(args.data).resolve() if args.data else fetch("movielens-100k", progress=print)
    for name in args.names or [*TRIES, BOTH]:
        if name == BOTH:
            both(args.models, args.label, folder, args.minutes)
        else:
            tried(name, args.label, folder, args.minutes)


def tried(name: str, label: str, folder: Path, minutes: float) -> None:
    """One training."""
    run = f"runs/bench-tries-{label}"
    chosen = (f"reranker.train.budget_minutes={minutes}", *TRIES[name])
    # Prepared anew, since the settings of one try would stay for the next.
    step("prepare", *files_of(folder), "--run", run, *settings(*chosen))
    for command in ("train-retriever", "build-index", "train-reranker"):
        step(command, "--run", run)
    made = json.loads((ROOT / run / "artifacts/reranker" / published_reranker(run) / "record.json").read_text())
    fusion = made["fusion"]
    rounds = [
        {
            "steps": one["steps"],
            "best_step": one["best_step"],
            "loss": [one["before"]["loss"], one["best"]["loss"]] if one["before"] else None,
        }
        for one in made["rounds"]
    ]
    record(
        FILE,
        f"{label}_try_{name}",
        round(fusion["ndcg10_with"] / fusion["ndcg10_without"] - 1, 4),
        without=round(fusion["ndcg10_without"], 5),
        reached=round(fusion["ndcg10_with"], 5),
        used=fusion["used"],
        weights=fusion["weights"],
        users=fusion["users"],
        minutes=minutes,
        rounds=rounds,
        settings=list(TRIES[name]),
    )


def both(models: Sequence[str], label: str, folder: Path, minutes: float) -> None:
    """Two trainings behind one retriever."""
    for model in ASSETS.keys() & set(models):
        fetch(model, progress=print)  # now, and not after the first training
    run = f"runs/bench-tries-{label}"
    step("prepare", *files_of(folder), "--run", run, *settings(f"reranker.train.budget_minutes={minutes}"))
    for command in ("train-retriever", "build-index"):
        step(command, "--run", run)
    keys = {}
    for model in models:
        step("train-reranker", "--run", run, *settings(f"reranker.model={model}"))
        keys[model] = published_reranker(run)
    scored, selectors = scored_by(open_workspace(ROOT / run), keys)
    found = fit_several(scored, selectors.targets, list(keys))
    without, together = float(found.without.mean()), found.gains[tuple(keys)]
    more = {model: together - found.gains[model,] for model in keys}  # (B,) of both over this one alone
    record(
        FILE,
        f"{label}_try_{BOTH}",
        round(float(together.mean()) / without, 4),
        without=round(without, 5),
        reached={" + ".join(names): round(without + float(gains.mean()), 5) for names, gains in found.gains.items()},
        more_than_alone={
            model: {"mean": round(float(gains.mean()), 5), "standard_error": round(_standard_error(gains), 5)}
            for model, gains in more.items()
        },
        kept=list(found.kept),
        weights=dict(found.weights),
        users=len(selectors),
        minutes=minutes,
    )


def scored_by(ws: Workspace, keys: Mapping[str, str]) -> tuple[Candidates, Holdout]:
    """The candidates that fusions are fitted on, with a source for each reranker, and those who were asked.

    Args:
        keys: name of the source → key of the reranker.
    """
    config = ws.config.reranker
    selectors = ws.selectors.take(np.arange(min(len(ws.selectors), config.fusion_users)))
    retriever = open_retriever(ws, FitKind.EVALUATION)
    wanted = max(TRAINING_CANDIDATES, config.depth)
    exclude_known = ws.config.recommend.exclude_known
    found = retriever.candidates(selectors.histories, wanted, exclude_known=exclude_known).head(config.depth)
    scored = found.with_source(RETRIEVAL, retrieval_column(found))
    for name, key in keys.items():
        read = with_reranker_scores(load_model(ws.run, key), ws.dataset.catalog.texts, found, selectors.histories)
        scored = scored.with_source(name, read.sources[RERANKER])
    return scored, selectors


def _standard_error(values: PerUser) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
