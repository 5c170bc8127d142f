"""Time and memory of every kind of index as a catalog grows: figures, a picture, and the table in docs/index.md."""

import argparse
import json
import re
from typing import Any

import numpy as np

from bench.record import RESULTS, ROOT, record
from bench.vectors import ClusteredVectors
from index.build import IndexConfig, plan_index
from index.manifest import Trial

FILE = "index.json"
SMALLEST = 10_000
USERS = 400
PAGE, PICTURE = ROOT / "docs" / "index.md", ROOT / "docs" / "index-growth.png"
TABLE = re.compile(r"(<!-- growth -->\n).*?(<!-- /growth -->)", re.DOTALL)


def growth(args: argparse.Namespace) -> None:
    """Builds and measures every kind at 10,000, 100,000, … vectors; the auto plan should pick the fastest."""
    if args.measured:
        show(measured("growth")[0]["rows"])
        return
    rows: list[dict[str, Any]] = []
    picked_best = []
    size = SMALLEST
    while size <= args.largest:
        drawn = ClusteredVectors(size, args.dimension, seed=3)
        vectors, users = drawn.all(), drawn.users(USERS)
        # Once with all kinds measured, once as a user would: flat at once where that is fast enough.
        everything = plan_index(vectors, users, IndexConfig(flat_below_ms=0), say=print).report
        auto = plan_index(vectors, users, IndexConfig(), say=print).report[0].layout.kind
        fastest = min((trial for trial in everything if trial.recall >= 0.99), key=lambda trial: trial.p50_ms)
        picked = next(trial for trial in everything if trial.layout.kind is auto)
        flat = next(trial for trial in everything if trial.layout.kind == "flat")
        # By its own rule the plan stays flat, and exact, below a millisecond.
        picked_best.append(
            auto == fastest.layout.kind or (auto == "flat" and flat.p50_ms < IndexConfig().flat_below_ms)
        )
        rows += [_row(size, trial, picked=trial is picked) for trial in everything]
        size *= 10
    record(
        FILE, "growth", round(float(np.mean(picked_best)), 3), sizes=sorted({row["items"] for row in rows}), rows=rows
    )
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Draws the picture and writes the page, with ten million vectors where they were measured."""
    far = ten_million_row()
    draw(rows, far)
    PAGE.write_text(TABLE.sub(lambda match: match[1] + table(rows, far) + match[2], PAGE.read_text()))


def measured(prefix: str) -> list[dict[str, Any]]:
    """Recorded figures whose names begin so, by name."""
    path = RESULTS / FILE
    entries = json.loads(path.read_text()) if path.exists() else []
    return [entry for entry in entries if entry["figure"].startswith(prefix)]


def ten_million_row() -> dict[str, Any] | None:
    """What `python bench/index.py ten-million` found, as one more row; None before it was run."""
    found = {entry["figure"].removeprefix("ten_million_"): entry for entry in measured("ten_million_")}
    if not {"p50_ms", "build_hours", "bytes_per_vector"} <= found.keys():
        return None
    query = found["p50_ms"]
    return {
        "items": query["count"],
        "kind": query["layout"]["kind"],
        "recall": query["recall_at_100"],
        "one_recall": query["one_recall_at_100"],
        "p50_ms": query["value"],
        "searched_bytes": found["bytes_per_vector"]["value"],
        "build_seconds": found["build_hours"]["value"] * 3600,
    }


def _row(size: int, trial: Trial, *, picked: bool) -> dict[str, Any]:
    return {
        "items": size,
        "kind": str(trial.layout.kind),
        "picked": picked,
        "recall": round(trial.recall, 4),
        "p50_ms": round(trial.p50_ms, 4),
        "p99_ms": round(trial.p99_ms, 4),
        "queries_per_second": round(trial.queries_per_second),
        "searched_bytes": round(trial.searched_bytes, 1),
        "kept_bytes": round(trial.kept_bytes, 1),
        "build_seconds": round(trial.build_seconds, 2),
    }


def table(rows: list[dict[str, Any]], far: dict[str, Any] | None) -> str:
    """The rows as Markdown."""
    lines = [
        "| items | kind | recall@100 | p50 | queries/s, batches | bytes an item, + mapped | build |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind = f"**{row['kind']}**" if row["picked"] else row["kind"]
        lines.append(
            f"| {row['items']:,} | {kind} | {row['recall']:.4f} | {row['p50_ms']:.3f} ms | "
            f"{row['queries_per_second']:,} | {row['searched_bytes']:.0f} + {row['kept_bytes']:.0f} | "
            f"{row['build_seconds']:,.1f} s |"
        )
    if far:
        lines.append(
            f"| {far['items']:,} | {far['kind']}, not chosen by `auto` | {far['recall']:.4f}; the best one is among "
            f"the 100 for {far['one_recall']:.3f} | {far['p50_ms']:.1f} ms | | {far['searched_bytes']:.0f} + 0 | "
            f"{far['build_seconds']:,.0f} s |"
        )
    return "\n".join([*lines, "", f"![time and memory over size]({PICTURE.name})", ""])


def draw(rows: list[dict[str, Any]], far: dict[str, Any] | None) -> None:
    """Median time, build time and memory over size, a line for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    panels = (("p50_ms", "median of one query, ms"), ("build_seconds", "build, s"), ("searched_bytes", "bytes an item"))
    for axis, (field, name) in zip(axes, panels, strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            mine = [row for row in rows if row["kind"] == kind and row[field]]  # a build may round to no time at all
            axis.plot([row["items"] for row in mine], [row[field] for row in mine], marker="o", label=kind)
        if far:
            axis.plot(far["items"], far[field], marker="*", markersize=12, linestyle="", label=f"{far['kind']} alone")
        axis.set(xscale="log", yscale="log", xlabel="items", title=name)
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)
