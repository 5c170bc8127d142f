"""The figures of the main job: python bench/main_job.py WHAT; results in bench/results/main-job.json.

- all: the default: demo, ml100k, latency, tests
- demo: demo_minutes, demo_peak_gb
- ml100k: ml100k_ndcg10_over_best_baseline (after demo; looks at the test part)
- latency: recommend_retrieval_p50_ms, recommend_rerank50_p50_ms (after demo)
- tests: tests_minutes
- beauty --data DIR --judge JUDGE.PY: beauty_defaults_ndcg10, beauty_defaults_minutes; DIR holds the whole data, of
  which the job is given what JUDGE.PY's `blind` leaves
- beauty-evaluation-fit: beauty_evaluation_fit_ndcg10, from the same two places
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.judged import BLIND, Judge
from bench.record import ROOT, record
from bench.steps import lists_of_all, settings, step

FILE = "main-job.json"
CLI = [sys.executable, "cli.py"]


def demo(args: argparse.Namespace) -> None:
    """The whole demo, trained anew over runs/demo; assets are fetched before the clock starts."""
    subprocess.run([*CLI, "fetch", "movielens-100k", "minilm-l6"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    subprocess.run([*CLI, "demo", "--force"], cwd=ROOT, check=True)
    minutes = (time.perf_counter() - started) / 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    record(FILE, "demo_minutes", round(minutes, 2))
    record(FILE, "demo_peak_gb", round(peak, 2))


def ml100k(args: argparse.Namespace) -> None:
    """Two-stage NDCG@10 over the best baseline's, with the paired interval."""
    subprocess.run([*CLI, "evaluate", "--run", "runs/demo", "--split", "test"], cwd=ROOT, check=True)
    report = json.loads((ROOT / "runs/demo/reports/test/report.json").read_text())
    found = report["comparisons"][0]
    test = found["test"]
    record(
        FILE,
        "ml100k_ndcg10_over_best_baseline",
        round(1 + test["relative"], 4),
        low=round(1 + test["relative_low"], 4),
        high=round(1 + test["relative_high"], 4),
        ours=test["ours"],
        best_baseline=found["theirs"],
        verdict=test["verdict"],
    )


def latency(args: argparse.Namespace) -> None:
    """One user at a time in a warm process."""
    from data.schema import Histories
    from pipeline.workspace import open_workspace
    from recommend.recommender import Recommender
    from recommend.release import load_stages

    ws = open_workspace(ROOT / "runs/demo")
    recommender = Recommender(load_stages(ws.run, ws.run.release()), ws.config.recommending)
    users = np.random.default_rng(0).permutation(len(ws.dataset.users))[: args.users]
    retrieval, rerank = [], []
    for row in [*users[:10], *users]:
        history = ws.dataset.interactions[int(row)]
        started = time.perf_counter()
        found = recommender.retriever.candidates(Histories.of([history.tolist()]), 100)
        between = time.perf_counter()
        recommender.rerank(found, Histories.of([history.tolist()]), depth=50, always=True)
        retrieval.append((between - started) * 1000)
        rerank.append((time.perf_counter() - between) * 1000)
    for figure, times in (("recommend_retrieval_p50_ms", retrieval), ("recommend_rerank50_p50_ms", rerank)):
        low, middle, high = np.percentile(times[10:], [5, 50, 95])
        record(FILE, figure, round(float(middle), 2), low=round(float(low), 2), high=round(float(high), 2))


def tests(args: argparse.Namespace) -> None:
    """`make test` where everything is installed already."""
    started = time.perf_counter()
    subprocess.run(["make", "test"], cwd=ROOT, check=True)
    record(FILE, "tests_minutes", round((time.perf_counter() - started) / 60, 2))


def beauty(args: argparse.Namespace) -> None:
    """Quickstart with nothing but defaults on blind data; the judge scores the first stage's lists of all users.

    What is served, and judged here, is the final fit: it has learnt from the validation items, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Judge.of(args).blinded(Path(folder))
        started = time.perf_counter()
        subprocess.run([*CLI, "quickstart", *files, "--run", "runs/beauty"], cwd=ROOT, check=True, env=os.environ)
        minutes = (time.perf_counter() - started) / 60
        _record_judged(args, "beauty_defaults_ndcg10", "runs/beauty", Path(folder))
    record(FILE, "beauty_defaults_minutes", round(minutes, 1))


def beauty_evaluation_fit(args: argparse.Namespace) -> None:
    """The same first stage fitted without the validation items, as published figures are."""
    run = "runs/beauty-evaluation-fit"
    with tempfile.TemporaryDirectory() as folder:
        step("prepare", *Judge.of(args).blinded(Path(folder)), "--run", run, *settings(BLIND))
        step("train-retriever", "--run", run)
        step("build-index", "--run", run)
        _record_judged(args, "beauty_evaluation_fit_ndcg10", run, Path(folder))


def _record_judged(args: argparse.Namespace, figure: str, run: str, folder: Path) -> None:
    """Records NDCG@10 of what `run` serves to all users without reranking, by the judge."""
    recs = folder / "recs.parquet"
    lists_of_all(run, recs, "--rerank", "never")
    figures = Judge.of(args).score(recs)
    told = {name: figures[name] for name in ("recall@10", "recall@100", "coverage@10", "users")}
    record(FILE, figure, figures["ndcg@10"], low=figures["ndcg@10_low"], high=figures["ndcg@10_high"], judge=told)


def everything(args: argparse.Namespace) -> None:
    """What needs no data from elsewhere: demo, ml100k, latency, tests."""
    for measure in (demo, ml100k, latency, tests):
        measure(args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers()
    named = {
        "demo": demo,
        "ml100k": ml100k,
        "latency": latency,
        "tests": tests,
        "beauty": beauty,
        "beauty-evaluation-fit": beauty_evaluation_fit,
        "all": everything,
    }
    for name, measure in named.items():
        command = what.add_parser(name, help=measure.__doc__)
        command.set_defaults(measure=measure, users=200)
        if measure in (beauty, beauty_evaluation_fit):
            command.add_argument("--data", required=True)
            command.add_argument("--judge", required=True)
    args = parser.parse_args(sys.argv[1:] or ["all"])
    args.measure(args)


if __name__ == "__main__":
    main()
