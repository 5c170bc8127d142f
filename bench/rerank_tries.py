"""Ways to make a reranker worth its tokens, each tried on validation; results in bench/results/rerank-tries.json.

python bench/rerank_tries.py [NAME …] [--minutes N] [--data DIR --label NAME]: MovieLens-100k unless told otherwise;
without names, all of them, one training each behind one retriever. The test part is not looked at.

LABEL_try_NAME: relative gain in NDCG@10 of the fusion over retrieval alone on group B, weights by cross-validation over
users; "used" tells whether that was enough for a weight. With so many tries the best one is too good by chance: what
is chosen here is to be confirmed by bench/rerank_quality.py, once.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.record import ROOT, record
from bench.steps import published_reranker, settings, step
from store.assets import fetch

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
}
"""Name → settings beside the defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TRIES))
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training")
    parser.add_argument("--data", help="a folder of interactions.parquet and items.parquet")
    parser.add_argument("--label", default="ml100k", help="of the data")
    args = parser.parse_args()
    if unknown := set(args.names) - TRIES.keys():
        parser.error(f"no such try: {', '.join(sorted(unknown))}; there are {', '.join(TRIES)}")
    folder = Path(args.data).resolve() if args.data else fetch("movielens-100k", progress=print)
    for name in args.names or TRIES:
        tried(name, args.label, folder, args.minutes)


def tried(name: str, label: str, folder: Path, minutes: float) -> None:
    """One training."""
    run = f"runs/bench-tries-{label}"
    chosen = (f"reranker.train.budget_minutes={minutes}", *TRIES[name])
    files = [str(folder / file) for file in ("interactions.parquet", "items.parquet")]
    # Prepared anew, since the settings of one try would stay for the next.
    step("prepare", *files, "--run", run, *settings(*chosen))
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


if __name__ == "__main__":
    main()
