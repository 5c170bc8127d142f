"""Commands of a run as steps of a bench, and what they leave behind."""

import json
import subprocess
import sys
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


def published_reranker(run: str) -> str:
    """Its key."""
    return str(json.loads((ROOT / run / "current.json").read_text())["reranker"])
