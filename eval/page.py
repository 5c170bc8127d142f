"""The HTML page of a report: one file, no script, nothing loaded from elsewhere."""

from pathlib import Path
from typing import Any

import jinja2

from eval.agreement import Agreement
from eval.frontier import Frontier
from eval.metrics import KS, METRICS
from eval.plots import frontier_picture, recall_picture, slices_picture, systems_picture
from eval.results import MAIN_METRIC, Fit, Report, System
from eval.significance import DRAWS, Interval
from eval.words import SMALL_SLICE, conclusion, evidence, interval_words, metric_words, number, slice_words, symbol

_COLUMNS = ("recall@10", "ndcg@10", "mrr@10", "recall@100", "coverage@10", "novelty@10")


def render(report: Report, intervals: dict[str, Interval]) -> str:
    """The page as text; every title, id and note in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_view(report, intervals))


def _view(report: Report, intervals: dict[str, Interval]) -> dict[str, Any]:
    return {
        "report": report,
        "warning": _warning(report),
        "verdicts": _verdicts(report),
        "systems": _systems_table(report, intervals),
        "contributions": _contributions_table(report),
        "contribution_slices": _contribution_slices(report),
        "together": f"{report.contributions[0].test.ours:.4f}" if report.contributions else "",
        "columns": [metric_words(name) for name in _COLUMNS],
        "everything": _full_table(report),
        "ks": KS,
        "ceiling": _ceiling(report),
        "slices": _slices_table(report),
        "focus": report.in_focus,
        "small_slice": SMALL_SLICE,
        "systems_picture": systems_picture(report, intervals),
        "recall_picture": recall_picture(report),
        "slices_picture": slices_picture(report),
        "users": len(report.user_ids),
        "depth": max(system.evaluation.depth for system in report.systems),
        "unserved": [system for system in report.systems if system.evaluation.unserved],
        "main_metric": metric_words(MAIN_METRIC),
        "draws": DRAWS,
        "number": number,
        "gate": _gate_table(report),
        "frontier": report.frontier,
        "frontier_picture": None if report.frontier is None else frontier_picture(report.frontier),
        "frontier_rows": [] if report.frontier is None else _frontier_table(report.frontier),
    }


def _warning(report: Report) -> str:
    if report.fit is Fit.FINAL:
        return (
            "These models were fitted on every interaction, the held-out ones among them. "
            "The figures below show what they remember, not what they predict; do not quote them."
        )
    if report.part == "validation":
        return (
            "Validation figures. Models, weights and stopping times are chosen on validation interactions, "
            "so these figures flatter; the test part decides, and is looked at once."
        )
    return ""


def _verdicts(report: Report) -> list[dict[str, str]]:
    return [
        {
            "question": found.question or f"Is {found.ours} better than {found.theirs}?",
            "verdict": found.test.verdict.value,
            "kind": found.test.verdict.value.replace(" ", "-"),
            "symbol": symbol(found.test.verdict),
            "conclusion": conclusion(found.ours, found.theirs, found.test.verdict),
            "evidence": evidence(found.metric, found.test),
        }
        for found in report.comparisons
    ]


def _systems_table(report: Report, intervals: dict[str, Interval]) -> list[dict[str, Any]]:
    # Bold where more is better; more coverage or novelty is only different.
    accuracy = [name for name in _COLUMNS if not name.startswith(("coverage", "novelty"))]
    best = {name: max(system.evaluation.metrics.get(name, 0.0) for system in report.systems) for name in accuracy}
    rows = []
    for system in report.ranked:
        metrics, interval = system.evaluation.metrics, intervals[system.name]
        cells = [
            {
                "text": _cell(name, metrics.get(name)),
                "best": name in best and metrics.get(name) == best[name],
                "range": f"{interval.low:.4f} – {interval.high:.4f}" if name == MAIN_METRIC else "",
            }
            for name in _COLUMNS
        ]
        rows.append({"name": system.name, "note": system.note, "role": system.role.value, "cells": cells})
    return rows


def _contributions_table(report: Report) -> list[dict[str, str]]:
    return [
        {
            "source": found.source,
            "alone": f"{found.alone:.4f}",
            "without": f"{found.test.theirs:.4f}",
            "adds": f"{found.test.difference:+.4f}".replace("-", "−"),
            "range": interval_words(found.test).replace("-", "−"),
            "symbol": symbol(found.test.verdict),
            "verdict": found.test.verdict.value,
        }
        for found in report.contributions
    ]


def _contribution_slices(report: Report) -> dict[str, Any]:
    """What each source adds in every slice, and reaches there alone."""
    slices = report.contributions[0].slices if report.contributions else {}
    return {
        "names": [{"words": slice_words(name), "users": found.users} for name, found in slices.items()],
        "rows": [
            {
                "source": found.source,
                "cells": [
                    {"adds": f"{part.ours - part.theirs:+.4f}".replace("-", "−"), "alone": f"{part.alone:.4f}"}
                    for part in found.slices.values()
                ],
            }
            for found in report.contributions
        ],
    }


def _gate_table(report: Report) -> list[dict[str, str]]:
    return [
        {
            "share": f"{point.share:.0%}",
            "gain": f"{point.gain:+.4f}".replace("-", "−"),
            "random": f"{point.random:+.4f}".replace("-", "−"),
        }
        for point in report.gate
    ]


def _frontier_table(frontier: Frontier) -> list[dict[str, Any]]:
    """Cheapest first; those that no other beats are marked."""
    front = {point.setting for point in frontier.front}
    return [
        {
            "words": point.setting.words,
            "front": point.setting in front,
            "cells": [
                f"{point.ndcg10:.4f}",
                f"{point.test.difference:+.4f}".replace("-", "−"),
                f"{symbol(point.test.verdict)} {point.test.verdict.value}",
                f"{point.tokens:,.0f}",
                f"{point.mean_ms:,.1f}",
                f"{point.p50_ms:,.1f} / {point.p95_ms:,.1f}",
                f"{point.memory_mb:,.0f}",
                f"{point.cost_of_1000:.4g}",
                _agreement(point.agreement),
            ],
        }
        for point in sorted(frontier.points, key=lambda point: point.mean_ms)
    ]


def _agreement(found: Agreement | None) -> str:
    return "–" if found is None else f"{found.kendall_tau:.3f} / {found.largest_difference:.2g}"


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.startswith("coverage"):
        return f"{value * 100:.1f} %"
    return f"{value:.2f}" if name.startswith("novelty") else f"{value:.4f}"


def _full_table(report: Report) -> list[dict[str, Any]]:
    """Metric by metric, a row a system, a column a k."""
    return [
        {
            "metric": metric_words(metric),
            "rows": [
                {
                    "name": system.name,
                    "role": system.role.value,
                    "cells": [_cell(metric, system.evaluation.metrics.get(f"{metric}@{k}")) for k in KS],
                }
                for system in report.ranked
            ],
        }
        for metric in METRICS
    ]


def _ceiling(report: Report) -> list[dict[str, str]]:
    return [
        {"depth": f"{depth:,}", "recall": f"{value:.4f}", "width": f"{100 * value:.2f}"}
        for depth, value in sorted(report.ceiling.items())
    ]


def _slices_table(report: Report) -> list[dict[str, Any]]:
    focus = report.in_focus
    return [
        {
            "name": slice_words(name),
            "users": int(figures["users"]),
            "targets": int(figures["targets"]),
            "small": figures["users"] < SMALL_SLICE,
            "cells": [_pair(system, name) for system in focus],
        }
        for name, figures in focus[0].evaluation.slices.items()
        if MAIN_METRIC in figures
    ]


def _pair(system: System, name: str) -> str:
    found = system.evaluation.slices[name]
    return f"{found['recall@10']:.4f} / {found[MAIN_METRIC]:.4f}"
