"""What a sceptic works out for herself: from the exported Parquet and the rows of the log, past all our code."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.export import Asked, export
from pipeline.workspace import Workspace
from recommend.recommender import Rerank
from tests.pipeline.shop import log_rows, quiet


def exported(
    ws: Workspace,
    asked: Asked,
    folder: Path,
    *,
    k: int = 50,
    depth: int | None = None,
    users: int = 0,
    rerank: Rerank = Rerank.AUTO,
    towers_only: bool = False,
) -> pl.DataFrame:
    path = folder / f"{asked}.parquet"
    options = {"k": k, "depth": depth, "users": users, "rerank": rerank, "towers_only": towers_only}
    found = export(ws, asked, path, **options, log=quiet(ws))
    frame = pl.read_parquet(path)
    assert len(frame) == found.rows
    return frame


def histories_by_id() -> dict[str, list[str]]:
    """Straight from the rows of the file, past all our code."""
    found: dict[str, list[str]] = {}
    for user, item, _ in log_rows():
        found.setdefault(user, []).append(item)
    return found


def by_user(frame: pl.DataFrame) -> dict[str, list[str]]:
    grouped = frame.sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("item_id")
    return dict(grouped.iter_rows())


def ndcg10(items: list[str], target: str) -> float:
    return 1 / np.log2(items.index(target) + 2) if target in items[:10] else 0.0


def metrics(ws: Workspace, part: str) -> dict[str, dict[str, float]]:
    report = json.loads((ws.run.reports_dir / part / "report.json").read_text())
    return {system["name"]: system["metrics"] for system in report["systems"]}
