"""The report of an evaluation as three files: for programs, for statisticians, and for people."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from data.schema import USER_ID
from eval.page import render
from eval.plots import frontier_png
from eval.results import MAIN_METRIC, Comparison, Contribution, Fit, Report, Role, System
from eval.significance import Interval
from store.artifacts import atomic_write

__all__ = ["Comparison", "Contribution", "Fit", "Report", "Role", "System", "write_report"]

FORMAT = 1
SYSTEM = "system"


def write_report(directory: Path, report: Report) -> Path:
    """Write report.json, per_user.parquet and report.html, each atomically; gives the path of the page.

    With a frontier, frontier.png, too.

    Raises:
        NoSpace: when the disk refuses a file; an earlier one of that name is untouched.
    """
    intervals = report.intervals()
    content = json.dumps(as_json(report, intervals), indent=2, ensure_ascii=False, allow_nan=False)
    page = directory / "report.html"
    atomic_write(directory / "per_user.parquet", _parquet(per_user_frame(report)))
    atomic_write(directory / "report.json", content + "\n")
    if report.frontier is not None:
        atomic_write(directory / "frontier.png", frontier_png(report.frontier))
    atomic_write(page, render(report, intervals))
    return page


def as_json(report: Report, intervals: dict[str, Interval]) -> dict[str, Any]:
    """The whole report but for the figures of single users, in plain values."""
    return {
        "format": FORMAT,
        "title": report.title,
        "fit": report.fit.value,
        "part": report.part,
        "split": report.split,
        "users": len(report.user_ids),
        "counts": dict(report.counts),
        "systems": [_system_as_json(system, intervals[system.name]) for system in report.ranked],
        "comparisons": [asdict(comparison) for comparison in report.comparisons],
        "contributions": [asdict(contribution) for contribution in report.contributions],
        "ceiling": {f"recall@{depth}": value for depth, value in sorted(report.ceiling.items())},
        "cost": dict(report.cost),
        "left_out": dict(report.left_out),
        "gate": [asdict(point) for point in report.gate],
        "frontier": None if report.frontier is None else report.frontier.as_json(),
        "notes": list(report.notes),
        "provenance": dict(report.provenance),
    }


def per_user_frame(report: Report) -> pl.DataFrame:
    """One row for each system and user: user_id, system, and every metric, enough to test anything again."""
    names = [
        name
        for name in report.systems[0].evaluation.per_user
        if all(name in system.evaluation.per_user for system in report.systems)
    ]
    frames = [
        pl.DataFrame(
            {
                USER_ID: pl.Series(list(report.user_ids), dtype=pl.String),
                SYSTEM: pl.Series([system.name] * len(report.user_ids), dtype=pl.String),
                **{name: system.evaluation.per_user[name] for name in names},
            }
        )
        for system in report.systems
    ]
    return pl.concat(frames)


def _system_as_json(system: System, interval: Interval) -> dict[str, Any]:
    found = system.evaluation
    return {
        "name": system.name,
        "role": system.role.value,
        "note": system.note,
        "depth": found.depth,
        "unserved": found.unserved,
        "metrics": dict(found.metrics),
        "intervals": {MAIN_METRIC: [interval.low, interval.high]},
        "slices": {name: dict(figures) for name, figures in found.slices.items()},
    }


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
