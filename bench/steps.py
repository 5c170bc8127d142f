"""Commands of a run as steps of a bench, and what they leave behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.record import ROOT

CLI = [sys.executable, "cli.py"]
ONE_POINT = ("sweep.depths=[20]", 'sweep.precisions=["float32"]')
"""The frontier at the depth of the figures: for what an order that knows the answers would reach there."""


def step(*words: str) -> None:
    """Runs `python cli.py WORDS`."""
    subprocess.run([*CLI, *words], cwd=ROOT, check=True)


def settings(*assignments: str) -> list[str]:
    """Assignments as options."""
    return [part for assignment in assignments for part in ("--set", assignment)]


def files_of(folder: Path) -> list[str]:
    """The log and the catalog that lie in it."""
    return [str(folder.resolve() / name) for name in ("interactions.parquet", "items.parquet")]


def train_both(run: str) -> None:
    """Both stages of a prepared run."""
    for name in ("train-retriever", "build-index", "train-reranker"):
        step(name, "--run", run)


def evaluated(run: str, *sweep: str, users: int = 0) -> dict[str, Any]:
    """The report on the test part, with a frontier of twenty candidates.

    Args:
        sweep: further settings of the frontier.
        users: asked, drawn by a hash of their id; 0: all.
    """
    options = ["--split", "test", "--no-baselines", "--frontier", "--users", str(users)]
    step("evaluate", "--run", run, *options, *settings(*ONE_POINT, *sweep))
    read: dict[str, Any] = json.loads((ROOT / run / "reports/test/report.json").read_text())
    return read


def lists_of_all(run: str, file: Path, *options: str) -> dict[str, Any]:
    """Writes what is recommended to all users; returns what the run's log says of it, failures of the reranker too."""
    step("recommend", "--run", run, "--all", *options, "-o", str(file))
    entries = map(json.loads, (ROOT / run / "log.jsonl").read_text().splitlines())
    last: dict[str, Any] = [entry for entry in entries if entry.get("event") == "exported"][-1]
    return last


def published_reranker(run: str) -> str:
    """Its key."""
    return str(json.loads((ROOT / run / "current.json").read_text())["reranker"])


def fusion_record(run: str) -> dict[str, Any]:
    """What the weight of the published reranker rested on, on validation."""
    made = ROOT / run / "artifacts/reranker" / published_reranker(run) / "record.json"
    found: dict[str, Any] = json.loads(made.read_text())["fusion"]
    return found
