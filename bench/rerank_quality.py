"""What the second stage is worth: python bench/rerank_quality.py WHAT; results in bench/results/reranker.json.

- planted: planted_gain; a generated shop in which the rule of what comes next stands in words that the retriever does
  not read, so that only the reranker can see it: the share of the headroom that both stages recover on the test part
- ml100k: ml100k_rerank_gain; MovieLens-100k, defaults, the test part, looked at once
- data NAME --data DIR [--users N]: NAME_rerank_gain, NAME_rerank_headroom; the same on any data
- ml100k, data with --judge JUDGE.PY: the same two by a program of its own, over all users: both stages as they are
  served against the fusion without the language model's score, both fitted on what JUDGE.PY's `blind` leaves; our own
  test of the same lists stands beside them as "report"
- hostile: hostile_titles_places; what a title that speaks to the model instead of naming a thing gains it in rank

A gain is relative NDCG@10 of both stages over the first alone, low and high its paired interval; the headroom is that
of an order of the same candidates that knows the answers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.judged import BLIND, Judge, compared_by_report, verdict_of
from bench.planted import READ_BY_RETRIEVER, planted_files
from bench.record import ROOT, record
from bench.steps import evaluated, files_of, fusion_record, lists_of_all, settings, step, train_both
from config import read_config
from rerank.base import RerankRequest
from rerank.card import BaseModelName
from rerank.decoder import DecoderConfig, DecoderReranker
from rerank.packed import PackedReranker
from rerank.prompt import PromptConfig
from store.artifacts import Run
from store.assets import fetch, local_folder, resolve_model

FILE = "reranker.json"
ALWAYS = ("sweep.shares=[1.0]", "sweep.catalog_users=0")


def planted(args: argparse.Namespace) -> None:
    """Data whose rule only the reranker can see."""
    run = "runs/bench-planted"
    with tempfile.TemporaryDirectory() as folder:
        log, catalog = planted_files(Path(folder), users=args.users)
        chosen = (
            READ_BY_RETRIEVER,
            "retriever.recency.epochs=3",
            "retriever.sequence.epochs=3",
            f"reranker.train.budget_minutes={args.minutes}",
            "reranker.train.epochs=6",
            "reranker.easy_share=0.1",
        )
        step("prepare", str(log), str(catalog), "--run", run, *settings(*chosen))
    train_both(run)
    report = evaluated(run, *ALWAYS)
    found = _gain(report)
    share = (found["ours"] - found["without"]) / (found["oracle"] - found["without"])
    width = found["oracle"] - found["without"]
    record(
        FILE,
        "planted_gain",
        round(share, 4),
        low=round(found["difference_low"] / width, 4),
        high=round(found["difference_high"] / width, 4),
        **found,
    )


def ml100k(args: argparse.Namespace) -> None:
    """MovieLens-100k."""
    folder = fetch("movielens-100k", progress=print)
    args.name, args.data = "ml100k", str(folder)
    data(args)


def data(args: argparse.Namespace) -> None:
    """Any log and catalog."""
    run = f"runs/bench-rerank-{args.name}"
    judge = Judge.of(args) if args.judge else None
    chosen = [f"reranker.train.budget_minutes={args.minutes}", *([BLIND] if judge else []), *(args.set or [])]
    with tempfile.TemporaryDirectory() as folder:
        files = judge.blinded(Path(folder)) if judge else files_of(Path(args.data))
        step("prepare", *files, "--run", run, *settings(*chosen))
        train_both(run)
        found = _judged_gain(judge, run, Path(folder)) if judge else _gain(evaluated(run, *ALWAYS, users=args.users))
    record(
        FILE,
        f"{args.name}_rerank_gain",
        found["gain"],
        low=found["gain_low"],
        high=found["gain_high"],
        minutes=args.minutes,
        **found,
    )
    headroom = (found["ours"] - found["without"]) / (found["oracle"] - found["without"])
    record(FILE, f"{args.name}_rerank_headroom", round(headroom, 4), minutes=args.minutes, **found)


def hostile(args: argparse.Namespace) -> None:
    """Each of a set of titles put behind each of some candidates, against harmless words in its place."""
    saved = json.loads((ROOT / "bench/fixtures/rerank.json").read_text())
    titles = json.loads((ROOT / "bench/fixtures/hostile_titles.json").read_text())
    limits = PromptConfig(
        max_history_items=20, max_history_tokens=480, max_item_tokens=40, max_candidate_tokens=args.tokens
    )
    base = BaseModelName("bench", "bench")
    folder = local_folder(resolve_model("smollm2-135m-q4_1"))
    models: dict[str, PackedReranker[Any]] = {
        "SmolLM2-135M-Instruct, not tuned": DecoderReranker.create(
            folder, base=base, config=DecoderConfig(prompt=limits), seed=0
        )
    }
    if args.run:
        from recommend.release import load_reranker

        run = Run(Path(args.run))
        models["MiniLM, tuned"] = load_reranker(run, run.release().reranker or "")[0]
    found = {name: _places_gained(model, saved, titles, args.candidates) for name, model in models.items()}
    worst = max(found.values(), key=lambda one: one["hostile_mean"] - one["harmless_mean"])
    record(
        FILE,
        "hostile_titles_places",
        round(worst["hostile_mean"] - worst["harmless_mean"], 2),
        titles=len(titles["hostile"]),
        candidates=args.candidates,
        of=len(saved["candidates"]),
        models=found,
    )


def _places_gained(
    reranker: PackedReranker[Any], saved: dict[str, Any], titles: dict[str, list[str]], candidates: int
) -> dict[str, float]:
    """Places that candidates gain, by kind of addition: mean, 95th percentile and most."""
    history, texts = tuple(saved["history"]), list(saved["candidates"])
    plain = reranker.score([RerankRequest(history, tuple(texts))]).scores[0]
    chosen = np.linspace(0, len(texts) - 1, candidates).round().astype(int)
    figures = {}
    for kind, additions in titles.items():
        gained = []
        for place in chosen:
            changed = tuple(f"{texts[place]} {words}" for words in additions)
            scores = reranker.score([RerankRequest(history, changed)]).scores[0]
            others = np.delete(plain, place)
            before = int((others > plain[place]).sum())
            gained += [before - int((others > score).sum()) for score in scores]
        figures[f"{kind}_mean"] = round(float(np.mean(gained)), 2)
        figures[f"{kind}_p95"] = round(float(np.percentile(gained, 95)), 1)
        figures[f"{kind}_most"] = int(np.max(gained))
    return figures


def _gain(report: dict[str, Any]) -> dict[str, Any]:
    """Both stages as they would be served, and with a weight even where validation gave the reranker none."""
    test = next(one["test"] for one in report["comparisons"] if one["question"] == "Does reranking help?")
    always = report["frontier"]["points"][0]  # of the config's own reranker; those of earlier settings follow
    return {
        "gain": round(test["relative"] or 0.0, 4),
        "gain_low": round(test["relative_low"] or 0.0, 4),
        "gain_high": round(test["relative_high"] or 0.0, 4),
        "verdict": test["verdict"],
        "p": test["p_value"],
        "ours": test["ours"],
        "without": test["theirs"],
        "oracle": report["frontier"]["ceiling"]["20"],
        "difference_low": test["low"],
        "difference_high": test["high"],
        "users": report["users"],
        "fusion_fitted_anyway": {"ndcg@10": round(always["ndcg10"], 5), "verdict": always["test"]["verdict"]},
    }


def _judged_gain(judge: Judge, run: str, folder: Path) -> dict[str, Any]:
    """Both stages as they are served, by the judge, and by our own test of the same lists.

    Without reranking, lists are in the order of the retrieval score: the fusion that is fitted without the language
    model's column, since whatever weight the one other column gets leaves its order as it is.
    """
    served, without = folder / "served.parquet", folder / "without.parquet"
    written = lists_of_all(run, served)
    lists_of_all(run, without, "--rerank", "never")
    first, both = judge.score(without), judge.score(served, against=without)
    config = read_config(Run(ROOT / run).config_path).data
    test = compared_by_report(served, without, data=judge.data, config=config)
    return {
        "gain": round(both.get("relative", 0.0), 4),  # it tells none over lists that find nothing
        "gain_low": round(both.get("relative_low", 0.0), 4),
        "gain_high": round(both.get("relative_high", 0.0), 4),
        "verdict": verdict_of(both["difference_low"], both["difference_high"]),
        "ours": both["ndcg@10"],
        "without": both["against_ndcg@10"],
        "oracle": first["recall@20"],  # one item is asked for: where it is among the first 20, it would be on top
        "difference_low": both["difference_low"],
        "difference_high": both["difference_high"],
        "users": both["users"],
        "failed": written["failed"],
        "report": {
            "gain": round(test.relative or 0.0, 4),
            "gain_low": round(test.relative_low or 0.0, 4),
            "gain_high": round(test.relative_high or 0.0, 4),
            "verdict": test.verdict,
            "p": test.p_value,
            "ours": test.ours,
            "without": test.theirs,
            "users": test.users,
        },
        "validation": fusion_record(run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    for measure, minutes in ((planted, 10.0), (ml100k, 4.0), (data, 60.0), (hostile, 0.0)):
        command = what.add_parser(measure.__name__, help=measure.__doc__)
        command.set_defaults(measure=measure, set=None, judge=None, users=0)
        if minutes:
            command.add_argument("--minutes", type=float, default=minutes, help="of training the reranker")
        if measure is planted:
            command.add_argument("--users", type=int, default=1500)
        if measure in (ml100k, data):
            command.add_argument("--set", action="append", help="a setting of prepare")
            command.add_argument("--judge", metavar="JUDGE.PY", help="a program that blinds and scores, for all users")
        if measure is data:
            command.add_argument("name", help="as in beauty")
            command.add_argument("--data", required=True)
            command.add_argument("--users", type=int, default=0, help="asked, drawn by a hash of their id; 0: all")
        if measure is hostile:
            command.add_argument("--run", help="a run whose published reranker is asked, too")
            command.add_argument("--candidates", type=int, default=10, help="that the titles are put behind")
            command.add_argument("--tokens", type=int, default=80, help="of a candidate, so that nothing is cut off")
    args = parser.parse_args()
    if args.judge and args.users:
        parser.error("--judge is asked about all users: leave out --users")
    args.measure(args)


if __name__ == "__main__":
    main()
