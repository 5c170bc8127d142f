"""One process that publishes releases, and readers beside it who never stop asking."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np

from index.faiss_index import FlatIndex
from index.published import PublishedIndex
from store.artifacts import Run
from store.releases import prune

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bench.readers"])

ITEMS, DIMENSION = 400, 8
PATIENCE_S = 600


def publish_under_readers(root: Path, *, releases: int, readers: int) -> list[dict[str, Any]]:
    """Publishes so many releases; returns for each reader its answers, the releases that it saw, and what failed.

    Every vector of release r is r times the first axis, and so are those added to it: the scores of an answer must
    all be r, and r must never fall.
    """
    run = Run(root)
    _publish(run, 1)
    done = root / "done"
    processes = [CONTEXT.Process(target=_read, args=(str(root), str(done), number)) for number in range(readers)]
    for process in processes:
        process.start()
    for number in range(readers):
        _wait_for(root / f"ready-{number}")
    for release in range(2, releases + 1):
        _publish(run, release)
        index = PublishedIndex(run)
        index.add(_vectors(release, 3))
        index.remove(np.array([release % ITEMS]))
        if release % 7 == 0:
            index.compact()
        prune(run)
    done.touch()
    for process in processes:
        process.join(PATIENCE_S)
    return [json.loads((root / f"reader-{number}").read_text()) for number in range(readers)]


def _publish(run: Run, release: int) -> None:
    index = FlatIndex(_vectors(release, ITEMS))
    made_from = {"release": release}
    key = run.write_artifact("index", made_from, lambda folder: index.save(folder, retriever="r", catalog="c"))
    run.publish(index=key, live=None)


def _vectors(release: int, count: int) -> np.ndarray:
    vectors = np.zeros((count, DIMENSION), dtype=np.float32)
    vectors[:, 0] = release
    return vectors


def _wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)


def _read(root: str, done: str, number: int) -> None:
    index = PublishedIndex(Run(Path(root)))
    Path(root, f"ready-{number}").touch()
    query = np.eye(1, DIMENSION, dtype=np.float32)
    answers, last, seen, failed = 0, 0.0, set(), []
    finished = False
    while not finished:
        finished = Path(done).exists()
        try:
            index.refresh()
            scores, rows = index.index.search(query, ITEMS + 10)
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
            continue
        answers += 1
        there = scores[0, np.isfinite(scores[0])]
        release = float(there[0])
        whole = (there == release).all() and len(there) in (ITEMS, ITEMS + 3, ITEMS + 2)
        if not whole or release < last or len(np.unique(rows[0, : len(there)])) != len(there):
            failed.append(f"after release {last:g}: scores {np.unique(there).tolist()}, {len(there)} rows")
        last = max(last, release)
        seen.add(release)
    found = {"answers": answers, "releases": len(seen), "failed": failed}
    Path(root, f"reader-{number}").write_text(json.dumps(found))
