"""Search in one process: python bench/index.py WHAT; each prints ratios of both sides measured in turn in one run.

Vectors are 156,353 clustered ones of 384 dimensions from a seed; --run RUN takes the item and user vectors of a
trained run, --vectors FILE (.npy or .safetensors) those of texts. Results: bench/results/index.json.

- api: api_over_raw_faiss_p50, api_over_raw_faiss_p99: one query through FlatIndex over FAISS's own IndexFlatIP
- ann: ann_speedup_at_99: queries a second, one at a time, of the kind that the plan chooses over the flat index
- filters: filter_worst_recall, filter_worst_p99_ratio: from all items down to one in ten thousand
- batch: batch256_over_torch: 256 queries, flat, over torch's matmul and topk
- growth: growth: every kind from 10,000 to --largest vectors of 128 dimensions; docs/index.md and its picture, too
- ten-million: ten_million_build_hours, ten_million_bytes_per_vector, ten_million_p50_ms; goes on where it was killed
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.py does

import faiss
import numpy as np

from bench.growth import growth
from bench.record import record
from bench.ten_million import ten_million
from bench.vectors import ClusteredVectors
from data.schema import NO_ITEM, Mask, Scores
from index.base import VectorIndex
from index.build import IndexConfig, Planned, plan_index
from index.faiss_index import FlatIndex
from index.measure import recall_of

FILE = "index.json"
K = 100
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
TUNED_ON = 400
"""Users by whom the plan chooses; all others are asked for the figures."""


@dataclass(frozen=True)
class Data:
    """(N, D) vectors, and (n, D) of users: those that the plan may see, then the others."""

    vectors: Scores
    users: Scores
    name: str

    @property
    def seen(self) -> Scores:
        return self.users[:TUNED_ON]

    @property
    def held_out(self) -> Scores:
        return self.users[TUNED_ON:]


def api(args: argparse.Namespace) -> None:
    """One query at a time: our checks, ties and places against FAISS alone; the planned kind beside them."""
    data = loaded(args)
    raw, ours = faiss.IndexFlatIP(data.vectors.shape[1]), FlatIndex(data.vectors)
    raw.add(data.vectors)
    planned = plan_index(data.vectors, data.seen, IndexConfig(), say=print).index
    sides = {
        "raw": lambda query: raw.search(query, K),
        "ours": lambda query: ours.search(query, K),
        "planned": lambda query: planned.search(query, K),
    }
    found = in_turn(sides, data.held_out, rounds=args.rounds, searches=args.searches)
    for name, percentile in (("p50", 50), ("p99", 99)):
        at = {side: np.percentile(seconds, percentile, axis=1) for side, seconds in found.items()}
        _record_ratio(
            f"api_over_raw_faiss_{name}",
            at["ours"] / at["raw"],
            data=data.name,
            raw_ms=_ms(at["raw"]),
            ours_ms=_ms(at["ours"]),
            **{f"{planned.kind}_ms": _ms(at["planned"])},
        )


def ann(args: argparse.Namespace) -> None:
    """The planned kind at its one set of parameters, on users that the plan has not seen."""
    data = loaded(args)
    flat = FlatIndex(data.vectors)
    planned = _planned(data, args)
    index = planned.index
    recall = float(recall_of(index.search(data.held_out, K)[1], flat.search(data.held_out, K)[1]).mean())
    sides = {"flat": lambda query: flat.search(query, K), "planned": lambda query: index.search(query, K)}
    found = in_turn(sides, data.held_out, rounds=args.rounds, searches=args.searches)
    rates = {side: 1 / seconds.mean(axis=1) for side, seconds in found.items()}
    _record_ratio(
        "ann_speedup_at_99",
        rates["planned"] / rates["flat"],
        data=data.name,
        recall_at_100=round(recall, 5),
        kind=str(index.kind),
        effort=index.effort.model_dump(),
        layout=index.layout.model_dump(mode="json"),
        queries_per_second={side: round(float(np.median(rate)), 1) for side, rate in rates.items()},
        tried=[trial.model_dump(mode="json", exclude={"layout", "effort"}) for trial in planned.report],
    )


def filters(args: argparse.Namespace) -> None:
    """Exactly k rows, recall against exact filtered search, and times, whatever a filter leaves."""
    data = loaded(args)
    flat = FlatIndex(data.vectors)
    rng = np.random.default_rng(0)
    towards = rng.standard_normal(data.vectors.shape[1]) @ data.vectors.T
    told: list[dict[str, Any]] = []
    for index in (_planned(data, args).index, flat):
        for share in SHARES:
            scattered = rng.permutation(len(data.vectors)) < share * len(data.vectors)
            alike = towards >= np.quantile(towards, 1 - share)
            for name, mask in (("scattered", scattered), ("alike", alike)):
                told.append(
                    {"kind": str(index.kind), "share": share, "items": name} | _filtered(index, flat, data, mask, args)
                )
                print(told[-1])
    ours = [entry for entry in told if entry["kind"] != "flat" or len({one["kind"] for one in told}) == 1]
    record(FILE, "filter_worst_recall", min(entry["recall"] for entry in ours), data=data.name, all=told)
    worst = max(entry["p99_ratio"] for entry in ours)
    record(FILE, "filter_worst_p99_ratio", worst, data=data.name, unfiltered="the same index in the same rounds")


def _filtered(
    index: VectorIndex, flat: FlatIndex, data: Data, mask: Mask, args: argparse.Namespace
) -> dict[str, float]:
    asked = data.held_out[:200]
    _, best = flat.search(asked, K, allowed=mask)
    _, found = index.search(asked, K, allowed=mask)
    left = min(K, int(mask.sum()))
    if not (((found != NO_ITEM).sum(1) == left).all() and mask[found[found != NO_ITEM]].all()):
        raise SystemExit(f"{index} returned other than {left} allowed rows")
    sides = {"all": lambda query: index.search(query, K), "some": lambda query: index.search(query, K, allowed=mask)}
    seconds = in_turn(sides, asked, rounds=args.rounds, searches=args.searches)
    p99 = {side: np.percentile(times, 99, axis=1) for side, times in seconds.items()}
    return {
        "recall": round(float(recall_of(found, best).mean()), 5),
        "p50_ms": _ms(np.median(seconds["some"], axis=1)),
        "p99_ratio": round(float(np.median(p99["some"] / p99["all"])), 3),
    }


def batch(args: argparse.Namespace) -> None:
    """256 queries at once, exact."""
    import torch

    data = loaded(args)
    ours, queries = FlatIndex(data.vectors), data.users[:256]
    theirs, asked = torch.from_numpy(data.vectors), torch.from_numpy(queries)
    sides = {
        "ours": lambda _: ours.search(queries, K),
        "torch": lambda _: torch.topk(asked @ theirs.T, K),
    }
    found = in_turn(sides, queries, rounds=args.rounds, searches=3)
    seconds = {side: np.median(times, axis=1) for side, times in found.items()}
    rates = {side: round(256 / float(np.median(times)), 1) for side, times in seconds.items()}
    _record_ratio("batch256_over_torch", seconds["torch"] / seconds["ours"], data=data.name, queries_per_second=rates)


def in_turn(
    sides: Mapping[str, Callable[[Any], object]], queries: Scores, *, rounds: int, searches: int
) -> dict[str, Scores]:
    """Side → (rounds, searches) seconds of single queries; the sides take turns, and begin in turn."""
    seconds = {side: np.empty((rounds, searches), dtype=np.float32) for side in sides}
    names = list(sides)
    for turn in range(rounds):
        for side in names[turn % len(names) :] + names[: turn % len(names)]:
            search = sides[side]
            for step in range(-2, searches):
                query = queries[(turn * searches + step) % len(queries)][None, :]
                started = time.perf_counter()
                search(query)
                if step >= 0:
                    seconds[side][turn, step] = time.perf_counter() - started
    return seconds


def loaded(args: argparse.Namespace) -> Data:
    """The vectors that the options name."""
    if args.run:
        return _of_run(Path(args.run))
    if args.vectors:
        vectors = _of_file(Path(args.vectors))
        rng = np.random.default_rng(0)
        # A user who took eight items at random among the sixty-four nearest to one.
        _, near = FlatIndex(vectors).search(vectors[rng.choice(len(vectors), TUNED_ON + 1000, replace=False)], 64)
        users = vectors[rng.permuted(near, axis=1)[:, :8]].mean(axis=1)
        return Data(vectors, users, Path(args.vectors).name)
    drawn = ClusteredVectors(args.items, args.dimension, seed=1)
    return Data(drawn.all(), drawn.users(TUNED_ON + 1000), f"{args.items:,} clustered × {args.dimension}, seed 1")


def _of_file(path: Path) -> Scores:
    if path.suffix == ".npy":
        return np.ascontiguousarray(np.load(path), dtype=np.float32)
    from safetensors.numpy import load_file

    return np.ascontiguousarray(next(iter(load_file(path).values())), dtype=np.float32)


def _of_run(root: Path) -> Data:
    from pipeline.train_retriever import open_retriever
    from pipeline.workspace import FitKind, open_workspace

    ws = open_workspace(root)
    retriever = open_retriever(ws, FitKind.EVALUATION)
    histories = ws.split.validation.histories
    some = np.random.default_rng(0).permutation(np.flatnonzero(histories.lengths > 0))[: TUNED_ON + 1000]
    users = retriever.towers.user_vectors(histories.take(some), retriever.item_vectors)
    return Data(retriever.item_vectors, retriever.towers.weighted(users), root.name)


def _planned(data: Data, args: argparse.Namespace) -> Planned:
    return plan_index(data.vectors, data.seen, IndexConfig(kind=args.kind), say=print)


def _record_ratio(figure: str, ratios: Scores, **more: Any) -> None:
    low, high = float(ratios.min()), float(ratios.max())
    record(FILE, figure, round(float(np.median(ratios)), 4), low=round(low, 4), high=round(high, 4), **more)


def _ms(seconds: Scores) -> float:
    return round(float(np.median(seconds)) * 1e3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    for measure in (api, ann, filters, batch):
        command = what.add_parser(measure.__name__, help=measure.__doc__)
        command.set_defaults(measure=measure)
        command.add_argument("--run", help="a trained run, whose vectors and users are taken")
        command.add_argument("--vectors", help=".npy or .safetensors of item vectors")
        command.add_argument("--items", type=int, default=156_353)
        command.add_argument("--dimension", type=int, default=384)
        command.add_argument("--kind", default="auto", help="of the approximate index")
        command.add_argument("--rounds", type=int, default=9)
        command.add_argument("--searches", type=int, default=200, help="in a round, of each side")
    command = what.add_parser("growth", help=growth.__doc__)
    command.set_defaults(measure=growth)
    command.add_argument("--largest", type=int, default=1_000_000)
    command.add_argument(
        "--measured", action="store_true", help="page and picture alone, from what was measured before"
    )
    command.add_argument("--dimension", type=int, default=128)
    command = what.add_parser("ten-million", help=ten_million.__doc__)
    command.set_defaults(measure=ten_million)
    command.add_argument("--count", type=int, default=10_000_000)
    command.add_argument("--folder", default="runs/bench-ten-million", help="where a killed build goes on")
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
