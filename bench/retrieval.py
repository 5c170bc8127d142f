"""The figures of retrieval, by a judge of its own: python bench/retrieval.py WHAT --data DIR --judge JUDGE.PY.

DIR holds interactions.parquet and items.parquet, of which the job is given what JUDGE.PY's `blind` leaves; the
retriever is fitted without the validation items, too, as published figures are. Results: bench/results/retrieval.json.

- beauty: beauty_towers_recall10, beauty_towers_ndcg10, beauty_fused_recall10, beauty_fused_ndcg10,
  beauty_fused_recall100, beauty_train_minutes; means of three seeds, the smallest and largest as low and high
- beauty_sum: beauty_sum_ndcg10, beauty_sum_recall10; after `beauty`, of its three runs the same lists by the weighted
  sum of sources alone, without the network over it
- ml1m: ml1m_fused_recall10, ml1m_fused_ndcg10; one seed, low and high from the judge's interval over users
- temporal NAME: NAME_temporal_ndcg10_over_best_baseline; a global cut at 90 % of the rows, looked at once
- last_item NAME: NAME_ndcg10_over_best_baseline; leave one out, any data by the defaults, looked at once
- catalog: catalog156k_train_hours, catalog156k_train_peak_gb, catalog156k_ndcg10_over_best_baseline
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl

from bench.judged import BLIND, Judge
from bench.record import ROOT, record
from bench.steps import files_of, lists_of_all, settings, step
from data.schema import ITEM_ID, RANK, USER_ID
from pipeline.workspace import open_workspace
from recommend.release import load_stages

FILE, DEPTH = "retrieval.json", 100
SEEDS = 3
SEQUENCE_BASELINES = ["recent-popularity", "item-knn", "transitions-text", "sasrec"]
SYSTEMS = {"towers": ["--towers-only"], "fused": ["--rerank", "never"]}
"""What is judged → how `recommend --all` is asked for it."""


def beauty(args: argparse.Namespace) -> None:
    """Three seeds, each a training of its own, judged by towers alone and by all sources."""
    with tempfile.TemporaryDirectory() as folder:
        found = [_judged_seed(args, Path(folder), run=f"runs/bench-beauty-{seed}", seed=seed) for seed in range(SEEDS)]
    for system in SYSTEMS:
        for key, metric in (("recall10", "recall@10"), ("ndcg10", "ndcg@10"), ("recall100", "recall@100")):
            if (system, key) != ("towers", "recall100"):
                _record_spread(f"beauty_{system}_{key}", [seed[system][metric] for seed in found])
    _record_spread("beauty_train_minutes", [seed["minutes"] for seed in found])


def beauty_sum(args: argparse.Namespace) -> None:
    """The lists of `beauty`'s runs by the weighted sum of sources alone."""
    judge, found = Judge.of(args), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            ws = open_workspace(ROOT / f"runs/bench-beauty-{seed}")
            retriever = load_stages(ws.run, ws.run.release(), with_reranker=False).retriever.linear
            top = retriever.candidates(ws.dataset.interactions, DEPTH)
            users, items = (vocabulary.ids for vocabulary in (ws.dataset.users, ws.dataset.catalog.vocabulary))
            user, place = top.present.nonzero()
            rows = {
                USER_ID: [users[row] for row in user],
                ITEM_ID: [items[row] for row in top.item_rows[user, place]],
                RANK: place + 1,
                "score": top.score[user, place],
            }
            lists = Path(folder) / f"{seed}.parquet"
            pl.DataFrame(rows).write_parquet(lists)
            found.append(judge.score(lists))
    for key, metric in (("recall10", "recall@10"), ("ndcg10", "ndcg@10")):
        _record_spread(f"beauty_sum_{key}", [seed[metric] for seed in found])


def ml1m(args: argparse.Namespace) -> None:
    """One seed on MovieLens-1M."""
    with tempfile.TemporaryDirectory() as folder:
        found = _judged_seed(args, Path(folder), run="runs/bench-ml1m", seed=0)
    fused = found["fused"]
    for key, metric in (("recall10", "recall@10"), ("ndcg10", "ndcg@10")):
        interval = {side: fused[f"{metric}_{side}"] for side in ("low", "high") if f"{metric}_{side}" in fused}
        record(
            FILE,
            f"ml1m_fused_{key}",
            fused[metric],
            low=interval.get("low"),
            high=interval.get("high"),
            towers=found["towers"][metric],
            train_minutes=found["minutes"],
        )


def temporal(args: argparse.Namespace) -> None:
    """Everything after one moment is asked; the best baseline of the same run is what it is compared with."""
    run = f"runs/bench-temporal-{args.name}"
    _retriever_of(args, run, "split.kind=temporal")
    found = _report(run, *settings(f"baselines.kinds={json.dumps(SEQUENCE_BASELINES)}"))
    record(FILE, f"{args.name}_temporal_ndcg10_over_best_baseline", **found)


def last_item(args: argparse.Namespace) -> None:
    """Each user's last item is asked; the best of the default baselines is what it is compared with."""
    run = f"runs/bench-{args.name}"
    _retriever_of(args, run)
    record(FILE, f"{args.name}_ndcg10_over_best_baseline", **_report(run, users=args.users))


def _retriever_of(args: argparse.Namespace, run: str, *assignments: str) -> None:
    """A run with a first stage of the data, or of one domain of them."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(args.data)
        if args.domain:
            data = _domain(data, args.domain, Path(folder))
        step("prepare", *files_of(data), "--run", run, *settings(*assignments, *args.settings))
    step("train-retriever", "--run", run)
    step("build-index", "--run", run)


def _domain(data: Path, name: str, folder: Path) -> Path:
    """Writes the items of one domain and who took them to `folder`."""
    log, catalog = map(pl.read_parquet, files_of(data))
    items = catalog.filter(pl.col("domain") == name).drop("domain")
    if not len(items):
        raise SystemExit(f"no item of domain {name}: there are {', '.join(sorted(set(catalog['domain'])))}")
    taken = log.join(items, on=ITEM_ID, how="semi")
    for found, file in zip((taken, items), files_of(folder), strict=True):
        found.write_parquet(file)
    return folder


def catalog(args: argparse.Namespace) -> None:
    """The whole training on a catalog of six domains, with its peak memory, then the report against baselines."""
    run = "runs/bench-catalog"
    step("prepare", *files_of(Path(args.data)), "--run", run)
    started = time.perf_counter()
    step("train-retriever", "--run", run)
    hours = (time.perf_counter() - started) / 3600
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    record(FILE, "catalog156k_train_hours", round(hours, 3))
    record(FILE, "catalog156k_train_peak_gb", round(peak, 2))
    step("build-index", "--run", run)
    record(FILE, "catalog156k_ndcg10_over_best_baseline", **_report(run, users=args.users))


def _judged_seed(args: argparse.Namespace, folder: Path, *, run: str, seed: int) -> dict[str, Any]:
    """Fits one seed on blinded data, writes both systems' lists, and has them judged."""
    judge = Judge.of(args)
    step("prepare", *judge.blinded(folder), "--run", run, *settings(BLIND))
    started = time.perf_counter()
    step("train-retriever", "--run", run, *settings(f"retriever.train.seed={seed}"))
    minutes = (time.perf_counter() - started) / 60
    step("build-index", "--run", run)
    found: dict[str, Any] = {"minutes": round(minutes, 2)}
    for system, options in SYSTEMS.items():
        lists = folder / f"{system}.parquet"
        lists_of_all(run, lists, *options)
        found[system] = judge.score(lists)
    return found


def _report(run: str, *options: str, users: int = 0) -> dict[str, Any]:
    """Our NDCG@10 over the best baseline's on the test part, with the paired interval and both coverages."""
    step("evaluate", "--run", run, "--split", "test", "--users", str(users), *options)
    report = json.loads((ROOT / run / "reports/test/report.json").read_text())
    comparison = report["comparisons"][0]
    test = comparison["test"]
    coverage = {system["name"]: system["metrics"]["coverage@10"] for system in report["systems"]}
    return {
        "value": round(1 + test["relative"], 4),
        "low": round(1 + test["relative_low"], 4),
        "high": round(1 + test["relative_high"], 4),
        "ours": test["ours"],
        "best_baseline": comparison["theirs"],
        "coverage": {name: coverage[name] for name in (comparison["ours"], comparison["theirs"])},
    }


def _record_spread(figure: str, values: list[float]) -> None:
    record(FILE, figure, round(float(np.mean(values)), 5), low=min(values), high=max(values), seeds=values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    for measure in (beauty, beauty_sum, ml1m, temporal, last_item, catalog):
        command = what.add_parser(measure.__name__, help=measure.__doc__)
        command.set_defaults(measure=measure)
        command.add_argument("--data", required=True)
        if measure in (beauty, beauty_sum, ml1m):
            command.add_argument("--judge", required=True)
        if measure in (temporal, last_item):
            command.add_argument("name", help="as in beauty, ml1m")
            command.add_argument("--domain", help="one of the catalog's column of that name; all unless given")
            command.add_argument("--set", action="append", default=[], dest="settings", help="as of cli.py prepare")
        if measure in (last_item, catalog):
            command.add_argument("--users", type=int, default=5000, help="asked, drawn by a hash of their id")
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
