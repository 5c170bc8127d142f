"""What is kept of a reranker's gain where it costs less; result in bench/results/reranker.json.

python bench/rerank_cheaper.py planted | ml100k | data NAME --data DIR

- gate_gain_kept_at_half: share of the gain of reranking everybody that is kept where the gate reranks half of the users
- distilled_gain_kept, distilled_speedup: the same for a MiniLM of few layers that learns from the fused scores of a
  larger reranker (--teacher, --layers), and milliseconds of the teacher over its own, one user and twenty candidates

A gain is NDCG@10 on the test part over retrieval alone, the fusion fitted at each setting; intervals are those of the
cheaper setting's paired test over the mean gain of the other. Where the gain is not significant there is nothing to
keep: the figures are then 0 and "applicable" is false.

On planted data (planted_…) only the reranker can see the rule. By default half of their users share makers, whose order
the retriever knows by itself, so that a gate has something to find: at best it keeps all of the gain.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.planted import READ_BY_RETRIEVER, planted_files
from bench.record import ROOT, record
from bench.steps import evaluated, published_reranker, settings, step, train_both
from store.assets import fetch

FILE = "reranker.json"
FIGURES = ("gate_gain_kept_at_half", "distilled_gain_kept", "distilled_speedup")


def planted(args: argparse.Namespace) -> None:
    """Generated data."""
    chosen = [
        READ_BY_RETRIEVER,
        "retriever.recency.epochs=3",
        "retriever.sequence.epochs=3",
        "reranker.train.epochs=6",
        "reranker.easy_share=0.1",
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = planted_files(Path(folder), users=args.users, shared=args.shared)
        _measure("planted", [str(file) for file in files], chosen, args)


def ml100k(args: argparse.Namespace) -> None:
    """MovieLens-100k."""
    args.name, args.data = "", str(fetch("movielens-100k", progress=print))
    data(args)


def data(args: argparse.Namespace) -> None:
    """Any log and catalog."""
    folder = Path(args.data).resolve()
    files = [str(folder / name) for name in ("interactions.parquet", "items.parquet")]
    _measure(args.name, files, args.set or [], args)


def _measure(name: str, files: list[str], chosen: list[str], args: argparse.Namespace) -> None:
    run = f"runs/bench-cheaper-{name or 'ml100k'}"
    if not args.trained:
        _train(run, files, chosen, args)
    frontier = evaluated(run, "sweep.shares=[1.0, 0.5]", "sweep.catalog_users=0", users=args.asked)["frontier"]
    _record(name, frontier, teacher=args.teacher, layers=args.layers or "all", minutes=args.minutes)


def _train(run: str, files: list[str], chosen: list[str], args: argparse.Namespace) -> None:
    """The teacher, and where it helped its student."""
    chosen = [*chosen, f"reranker.train.budget_minutes={args.minutes}", f"reranker.model={args.teacher}"]
    step("prepare", *files, "--run", run, *settings(*chosen))
    # Those of other settings would stand in the frontier, too.
    shutil.rmtree(ROOT / run / "artifacts/reranker", ignore_errors=True)
    train_both(run)
    teacher = published_reranker(run)
    helped = json.loads((ROOT / run / "artifacts/reranker" / teacher / "record.json").read_text())["fusion"]["used"]
    if helped:
        taught = [f"reranker.teacher={teacher}", "reranker.model=minilm-l6"]
        taught += [f"reranker.encoder.layers={args.layers}"] if args.layers else []
        taught += [f"reranker.train.budget_minutes={args.student_minutes or args.minutes}"]
        step("train-reranker", "--run", run, *settings(*taught))


def _record(name: str, frontier: dict[str, Any], **about: Any) -> None:
    prefix = f"{name}_" if name else ""
    always, half = _of(frontier, distilled=False)
    gain, verdict = always["test"]["difference"], always["test"]["verdict"]
    about |= {"gain": round(gain, 5), "verdict": verdict, "users": frontier["users"]}
    if verdict != "helps":
        for figure in FIGURES:
            record(FILE, prefix + figure, 0.0, applicable=False, **about)
        return
    shared = {**about, "retrieval": round(frontier["retrieval_ndcg10"], 5), "always": round(always["ndcg10"], 5)}
    kept = _kept(half, gain) | {
        "random_gate": 0.5,
        "half": round(half["ndcg10"], 5),
        "tokens": round(half["tokens"], 1),
    }
    record(FILE, prefix + FIGURES[0], **kept, applicable=True, **shared)
    student = _of(frontier, distilled=True)[0]
    shared |= {"distilled": round(student["ndcg10"], 5), "ms": [_ms(always, frontier), _ms(student, frontier)]}
    record(FILE, prefix + FIGURES[1], **_kept(student, gain), applicable=True, **shared)
    speedup = round(_ms(always, frontier) / _ms(student, frontier), 2)
    record(FILE, prefix + FIGURES[2], speedup, applicable=True, **shared)


def _of(frontier: dict[str, Any], *, distilled: bool) -> list[dict[str, Any]]:
    """A model's points: everybody, half of the users."""
    found = [one for one in frontier["points"] if ("distilled" in one["setting"]["model"]) == distilled]
    return sorted(found, key=lambda one: -one["setting"]["share"])[:2]


def _kept(point: dict[str, Any], gain: float) -> dict[str, float]:
    shares = {"value": point["test"]["difference"], "low": point["test"]["low"], "high": point["test"]["high"]}
    return {name: round(value / gain, 4) for name, value in shares.items()}


def _ms(point: dict[str, Any], frontier: dict[str, Any]) -> float:
    """Of the second stage, p50."""
    return round(float(point["p50_ms"]) - float(frontier["retrieval_ms"]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    for measure in (planted, ml100k, data):
        command = what.add_parser(measure.__name__, help=measure.__doc__)
        command.set_defaults(measure=measure)
        command.add_argument("--minutes", type=float, default=10.0, help="of training each of the two")
        command.add_argument(
            "--student-minutes", type=float, help="of training the one that is taught, if not the same"
        )
        command.add_argument("--teacher", default="minilm-l6", help="the larger model, such as smollm2-135m-q4_1")
        command.add_argument("--layers", type=int, default=2, help="of the taught MiniLM; 0: all six")
        command.add_argument(
            "--asked", type=int, default=0, help="users of the test part, by a hash of their id; 0: all"
        )
        command.add_argument("--trained", action="store_true", help="evaluate what an earlier call has trained")
        if measure is planted:
            command.add_argument("--users", type=int, default=1500)
            command.add_argument("--shared", type=float, default=0.5, help="of users, whose makers are shared")
        else:
            command.add_argument("--set", action="append", help="a setting of prepare")
        if measure is data:
            command.add_argument("name", help="as in beauty")
            command.add_argument("--data", required=True)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
