"""Kills, publishing under readers, and the time until added vectors are searchable.

python bench/index_life.py [kills] [publish] [add]; all three without a name; results in bench/results/index.json.

kills: a process that builds, adds to, removes from, compacts or publishes an index is killed with -9 at its n-th
change of the disk, n spread over all of them, a write being cut in half; a fresh process must find everything that
was acknowledged. publish: one process publishes releases and changes them, others search and look for new releases
between any two searches; an answer that fails, mixes releases or goes back in time is counted. add: from the call
until a second reader of the run has the vectors in its index; the search that finds them is timed beside it.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.crash import SCRIPTS, prepare, strike
from bench.readers import publish_under_readers
from bench.record import record
from index.faiss_index import FlatIndex
from index.published import PublishedIndex
from store.artifacts import Run

FILE = "index.json"
PARTS = ("kills", "publish", "add")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--kills", type=int, default=42, help="for each of build, add, remove, compact, publish")
    parser.add_argument("--releases", type=int, default=100)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--items", type=int, default=1_000_000, help="vectors in the index that is added to")
    parser.add_argument("--added", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts or PARTS:
            {"kills": kills, "publish": publish, "add": add}[part](Path(folder) / part, args)


def kills(folder: Path, args: argparse.Namespace) -> None:
    prepare(folder / "template")
    counts: dict[str, int] = {}
    faults: list[str] = []
    for struck in SCRIPTS:
        calls = strike(folder / "template", folder / "run", struck, kill_at=0).calls
        counts[struck] = 0
        for kill_at in places(calls, args.kills):
            outcome = strike(folder / "template", folder / "run", struck, kill_at=kill_at)
            counts[struck] += outcome.killed
            if outcome.fault:
                faults.append(f"{struck}, change {kill_at} of {calls}: {outcome.fault}")
                print(faults[-1], file=sys.stderr)
        print(f"{struck}: {counts[struck]} kills over {calls} changes of the disk", file=sys.stderr)
    record(FILE, "kills", sum(counts.values()), of=counts)
    record(FILE, "kills_lost", len(faults), faults=faults)


def places(calls: int, wanted: int) -> list[int]:
    """At most `wanted` different places from the first of `calls` to the last."""
    return sorted({round(place) for place in np.linspace(1, calls, min(wanted, calls)).tolist()})


def publish(folder: Path, args: argparse.Namespace) -> None:
    readers = publish_under_readers(folder, releases=args.releases, readers=args.readers)
    print(json.dumps(readers), file=sys.stderr)
    record(
        FILE,
        "publish_failed_reads",
        sum(len(reader["failed"]) for reader in readers),
        releases=args.releases,
        answers=[reader["answers"] for reader in readers],
        releases_seen=[reader["releases"] for reader in readers],
        failed=[failed for reader in readers for failed in reader["failed"]][:10],
    )


def add(folder: Path, args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    run = Run(folder)
    publish_base(run, rng.standard_normal((args.items, args.dimension), dtype=np.float32))
    writer, reader = PublishedIndex(run), PublishedIndex(run)
    seconds, searches = [], []
    for _ in range(args.rounds + 1):
        vectors = rng.standard_normal((args.added, args.dimension), dtype=np.float32)
        started = time.perf_counter()
        rows = writer.add(vectors)
        reader.refresh()
        seconds.append(time.perf_counter() - started)
        _, found = reader.index.search(100 * vectors[-1:], 1)
        searches.append(time.perf_counter() - started - seconds[-1])
        assert found[0, 0] == rows[-1], "what was added is not found"
    # The first round gives the run its journal and reads the base for the first time: reported, not averaged.
    later = np.array(seconds[1:])
    record(
        FILE,
        "add_1000_to_1m_seconds",
        round(float(np.median(later)), 4),
        low=round(float(later.min()), 4),
        high=round(float(later.max()), 4),
        first=round(seconds[0], 4),
        search_seconds=round(float(np.median(searches[1:])), 4),
        items=args.items,
        added=args.added,
        dimension=args.dimension,
        rounds=args.rounds,
    )


def publish_base(run: Run, vectors: np.ndarray) -> None:
    index = FlatIndex(vectors)
    run.publish(index=run.write_artifact("index", {}, lambda path: index.save(path, retriever="r", catalog="c")))


if __name__ == "__main__":
    main()
