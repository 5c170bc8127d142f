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
    (RESULTS / "index-growth.json").write_text(json.dumps(rows, indent=1) + "\n")
    record(
        FILE, "growth", round(float(np.mean(picked_best)), 3), sizes=sorted({row["items"] for row in rows}), rows=rows
    )
    draw(rows)
    PAGE.write_text(TABLE.sub(lambda match: match[1] + table(rows) + match[2], PAGE.read_text()))


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


def table(rows: list[dict[str, Any]]) -> str:
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
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Median time, build time and memory over size, a line for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    panels = (("p50_ms", "median of one query, ms"), ("build_seconds", "build, s"), ("searched_bytes", "bytes an item"))
    for axis, (field, name) in zip(axes, panels, strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            mine = [row for row in rows if row["kind"] == kind]
            axis.plot([row["items"] for row in mine], [row[field] for row in mine], marker="o", label=kind)
        axis.set(xscale="log", yscale="log", xlabel="items", title=name)
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)
