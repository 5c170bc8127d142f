"""What two stages lose and save against the reranker over the whole catalog; result in bench/results/reranker.json.

python bench/rerank_catalog.py [--users N] [--layers N] [--minutes N]: MovieLens-100k, the test part.

- full_catalog_quality_kept: NDCG@10 of two stages, twenty candidates deep, over that of every item of the catalog
  through the same reranker, both by one fusion; the interval is the paired one
- full_catalog_compute_used: tokens through the model for one user, two stages over the whole catalog, whose history is
  counted once

The reranker learns from random negatives alone, so that neither side is what it was made for. Of the whole catalog
nothing can be remembered: an item's states depend on the history before it.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from bench.record import record
from bench.steps import evaluated, settings, step, train_both
from store.assets import fetch

FILE = "reranker.json"
RUN = "runs/bench-catalog"
ITEMS, USERS, TOKENS_AN_ITEM = 1682, 943, 15
LAYERS, WEIGHTS_A_LAYER = 6, 12 * 384**2
"""Of MiniLM."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=0, help="asked, drawn by a hash of their id; 0: all")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of MiniLM's six that are kept")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training the reranker")
    args = parser.parse_args()
    asked = args.users or USERS
    print(
        f"reading the whole catalog for {asked} users will take some {expected_minutes(asked, args.layers):.0f} minutes"
    )
    folder = fetch("movielens-100k", progress=print)
    chosen = [f"reranker.train.budget_minutes={args.minutes}", "reranker.easy_share=1.0"]
    if args.layers < LAYERS:
        chosen.append(f"reranker.encoder.layers={args.layers}")
    files = [str(folder / name) for name in ("interactions.parquet", "items.parquet")]
    step("prepare", *files, "--run", RUN, *settings(*chosen))
    train_both(RUN)
    everything = (f"sweep.catalog_users={asked}", "sweep.catalog_tokens=1000000000000", "sweep.shares=[1.0]")
    frontier = evaluated(RUN, *everything, users=args.users)["frontier"]
    # The config's own reranker comes first; others may stand there from earlier runs of this script.
    whole, point = frontier["whole_catalog"][0], frontier["points"][0]
    test = whole["test"]
    shared = {
        "two_stage_ndcg10": round(test["ours"], 5),
        "full_catalog_ndcg10": round(test["theirs"], 5),
        "retrieval_ndcg10": round(frontier["retrieval_ndcg10"], 5),
        "verdict": test["verdict"],
        "tokens": {"two_stage": round(point["tokens"], 1), "full_catalog": round(whole["tokens"], 1)},
        "ms": {
            "second_stage": round(point["p50_ms"] - frontier["retrieval_ms"], 1),
            "full_catalog": round(whole["ms"], 1),
        },
        "users": whole["users"],
        "drawn": "by a hash of their id" if args.users else "all",
        "layers": args.layers,
        "minutes": args.minutes,
    }
    record(
        FILE,
        "full_catalog_quality_kept",
        round(test["ours"] / test["theirs"], 4),
        low=round(1 + test["relative_low"], 4),
        high=round(1 + test["relative_high"], 4),
        **shared,
    )
    record(FILE, "full_catalog_compute_used", round(point["tokens"] / whole["tokens"], 4), **shared)


def expected_minutes(users: int, layers: int) -> float:
    """By the operations and what this machine does of them now; a third more for attention."""
    left, right = torch.randn(2048, 384), torch.randn(384, 1536)
    left @ right
    started = time.perf_counter()
    for _ in range(10):
        left @ right
    a_second = 10 * 2 * 2048 * 384 * 1536 / (time.perf_counter() - started)
    return users * ITEMS * TOKENS_AN_ITEM * 2 * layers * WEIGHTS_A_LAYER * 4 / 3 / a_second / 60


if __name__ == "__main__":
    main()
