"""The pictures of a report, drawn twice, for light and for dark pages, as PNG in data: URIs."""

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from eval.frontier import Frontier
from eval.metrics import KS
from eval.results import MAIN_METRIC, Report, Role, System
from eval.significance import Interval, Verdict
from eval.words import SMALL_SLICE, metric_words, slice_words

_WIDTH_INCHES = 8.6
_DOTS_PER_INCH = 170


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one kind of page, all but the background, which stays transparent."""

    ink: str
    muted: str
    grid: str
    paper: str
    role: dict[Role, str]


LIGHT = Theme(
    ink="#1b2130",
    muted="#667085",
    grid="#e4e7ee",
    paper="#ffffff",
    role={Role.OURS: "#2456d6", Role.STAGE: "#7d9bea", Role.BASELINE: "#9aa2b1"},
)
DARK = Theme(
    ink="#e9ecf3",
    muted="#9aa3b5",
    grid="#2c3340",
    paper="#171b24",
    role={Role.OURS: "#86a8ff", Role.STAGE: "#6584da", Role.BASELINE: "#78818f"},
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One plot in both themes, with what a screen reader says instead."""

    light: str
    dark: str
    alt: str


def systems_picture(report: Report, intervals: dict[str, Interval]) -> Picture:
    """Every system's main metric with its interval, best on top, from zero."""
    ranked = report.ranked[::-1]

    def draw(axes: Axes, theme: Theme) -> None:
        top = max(intervals[system.name].high for system in ranked) or 1.0
        for height, system in enumerate(ranked):
            found, colour = intervals[system.name], theme.role[system.role]
            axes.plot([found.low, found.high], [height, height], color=colour, lw=2.4, solid_capstyle="round")
            axes.plot(found.mean, height, "o", ms=8, color=colour, mec=theme.paper, mew=1.4)
            axes.text(found.high + top * 0.015, height, f"{found.mean:.4f}", va="center", fontsize=9, color=theme.ink)
        axes.set_yticks(range(len(ranked)), [_plain(system.name) for system in ranked])
        for label, system in zip(axes.get_yticklabels(), ranked, strict=True):
            label.set_color(theme.ink)
            label.set_fontweight("bold" if system.role is Role.OURS else "normal")
        axes.set_xlim(0, top * 1.12)
        axes.set_ylim(-0.6, len(ranked) - 0.4)
        axes.grid(axis="x", color=theme.grid, lw=0.8)
        axes.set_xlabel(f"{metric_words(MAIN_METRIC)}, mean over users, with its 95 % interval")

    said = "; ".join(f"{s.name} {intervals[s.name].mean:.4f}" for s in report.ranked)
    return _picture(draw, height=0.7 + 0.36 * len(ranked), alt=f"{metric_words(MAIN_METRIC)} by system: {said}")


def recall_picture(report: Report) -> Picture:
    """Recall at every depth: lines of the systems in focus by name, the rest in grey."""
    focus = report.in_focus
    names = {system.name for system in focus}
    others = [system for system in report.systems if system.name not in names]

    def draw(axes: Axes, theme: Theme) -> None:
        ends: list[tuple[float, float, str, str]] = []
        for system in [*others, *focus[::-1]]:
            ks, values = _recall_curve(system)
            seen = system.name in names
            colour = theme.role[system.role]
            style: dict[str, Any] = {"lw": 2.2, "marker": "o", "ms": 5} if seen else {"lw": 1.1, "alpha": 0.6}
            axes.plot(ks, values, color=colour, **style)
            if seen and ks:
                named = theme.muted if system.role is Role.BASELINE else colour
                ends.append((ks[-1], values[-1], system.name, named))
        axes.set_xscale("log")
        axes.set_xticks(KS, [str(k) for k in KS])
        axes.minorticks_off()
        axes.set_xlim(0.95, KS[-1] * 1.06)
        axes.set_ylim(bottom=0)
        axes.grid(color=theme.grid, lw=0.8)
        axes.set_xlabel("k, places counted from the top (logarithmic)")
        axes.set_ylabel("Recall@k")
        _label_ends(axes, ends)

    said = "; ".join(f"{s.name} {s.evaluation.metrics['recall@10']:.4f}" for s in focus)
    return _picture(draw, height=3.5, alt=f"Recall by depth. Recall@10: {said}")


def slices_picture(report: Report) -> Picture | None:
    """The main metric of the systems in focus on every slice; None where no slice has it."""
    focus = report.in_focus[:3]
    names = [name for name, found in focus[0].evaluation.slices.items() if MAIN_METRIC in found]
    if not names:
        return None

    def draw(axes: Axes, theme: Theme) -> None:
        heights = _grouped_heights(names)
        for marker, size, system in list(zip("oDs", (8, 6, 5.5), focus, strict=False))[::-1]:
            values = [system.evaluation.slices[name][MAIN_METRIC] for name in names]
            colour = theme.role[system.role]
            axes.plot(
                values, heights, marker, ms=size, color=colour, mec=theme.paper, mew=1.1, label=_plain(system.name)
            )
        for name, height in zip(names, heights, strict=True):
            values = [system.evaluation.slices[name][MAIN_METRIC] for system in focus]
            axes.plot([min(values), max(values)], [height] * 2, color=theme.grid, lw=3, zorder=0)
        axes.set_yticks(heights, [_slice_label(focus[0], name) for name in names])
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            small = focus[0].evaluation.slices[name]["users"] < SMALL_SLICE
            label.set_color(theme.muted if small else theme.ink)
        axes.set_xlim(left=0)
        axes.margins(x=0.06)
        axes.set_ylim(min(heights) - 0.7, 0.7)
        axes.grid(axis="x", color=theme.grid, lw=0.8)
        axes.set_xlabel(metric_words(MAIN_METRIC))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], labels[::-1], loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False,
            labelcolor=theme.ink, handletextpad=0.2, borderpad=0.1, fontsize=9,
        )  # fmt: skip

    return _picture(
        draw,
        height=1.1 + 0.3 * (1 - min(_grouped_heights(names))),
        alt=f"{metric_words(MAIN_METRIC)} by slice; the same figures stand in the table below",
    )


def frontier_picture(frontier: Frontier) -> Picture:
    """Quality against time for every setting, and the line of those that no other beats."""
    front = "; ".join(f"{p.setting.words}: {p.ndcg10:.4f} for {p.mean_ms:.0f} ms" for p in frontier.front)
    said = front or "no setting is better than retrieval alone"
    return _picture(_frontier_drawer(frontier), height=3.9, alt=f"Quality against cost. On the front: {said}")


def frontier_png(frontier: Frontier) -> bytes:
    """The same picture as a file, light, on white."""
    return _png(_frontier_drawer(frontier), LIGHT, 3.9, opaque=True)


def _frontier_drawer(frontier: Frontier) -> Callable[[Axes, Theme], None]:
    models = list(dict.fromkeys(point.setting.model for point in frontier.points))

    def draw(axes: Axes, theme: Theme) -> None:
        colours = [theme.role[Role.OURS], theme.role[Role.BASELINE], theme.role[Role.STAGE]]
        for place, model in enumerate(models):
            marker, colour = "osD^v"[place % 5], colours[place % 3]
            points = [point for point in frontier.points if point.setting.model == model]
            for proved in (False, True):
                chosen = [point for point in points if (point.test.verdict is Verdict.HELPS) == proved]
                axes.plot(
                    [p.mean_ms for p in chosen], [p.ndcg10 for p in chosen], marker, ms=5.5, color=colour, mec=colour,
                    mfc=colour if proved else "none", mew=1.1, ls="", label=_plain(model) if proved else None,
                )  # fmt: skip
        start = (frontier.retrieval_ms, frontier.retrieval_ndcg10)
        line = [start, *((point.mean_ms, point.ndcg10) for point in frontier.front)]
        axes.step(*zip(*line, strict=True), where="post", color=theme.ink, lw=1.2, zorder=0)
        axes.plot(*start, "*", ms=12, color=theme.ink, mec=theme.paper, label="retrieval alone")
        axes.set_xscale("log")
        for axis_of in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis_of(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "1235" else ""))
        axes.tick_params(axis="x", which="minor", length=0, labelsize=9, colors=theme.muted)
        axes.grid(color=theme.grid, lw=0.8)
        axes.set_xlabel(
            "milliseconds a user, both stages, mean over all users (logarithmic); filled: it helps by the test"
        )
        axes.set_ylabel(metric_words(MAIN_METRIC))
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return draw


def _picture(draw: Callable[[Axes, Theme], None], *, height: float, alt: str) -> Picture:
    return Picture(_drawn(draw, LIGHT, height), _drawn(draw, DARK, height), alt)


def _drawn(draw: Callable[[Axes, Theme], None], theme: Theme, height: float) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(draw, theme, height)).decode()


def _png(draw: Callable[[Axes, Theme], None], theme: Theme, height: float, *, opaque: bool = False) -> bytes:
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=theme.muted)
    axes.xaxis.label.set(color=theme.muted, fontsize=9)
    axes.yaxis.label.set(color=theme.muted, fontsize=9)
    draw(axes, theme)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes here and stands in full in the tables.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", transparent=not opaque, metadata={"Software": None})
    return buffer.getvalue()


def _recall_curve(system: System) -> tuple[list[int], list[float]]:
    metrics = system.evaluation.metrics
    ks = [k for k in KS if f"recall@{k}" in metrics]
    return ks, [metrics[f"recall@{k}"] for k in ks]


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the ends of their lines, pushed apart where they would overlap."""
    rising = sorted(ends, key=lambda end: end[1])
    heights = _apart([value for _, value, _, _ in rising], gap=0.062 * axes.get_ylim()[1])
    for (last_k, value, name, colour), height in zip(rising, heights, strict=True):
        axes.annotate(
            _plain(name), (last_k, value), xytext=(1.02, height), textcoords=axes.get_yaxis_transform(),
            va="center", fontsize=9, color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _apart(values: Sequence[float], *, gap: float) -> list[float]:
    """`values`, rising, moved as little as it takes for `gap` between neighbours: clusters stay centred."""
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        while len(clusters) > 1 and _first(clusters[-1], gap) < _first(clusters[-2], gap) + gap * len(clusters[-2]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_first(cluster, gap) + gap * place for cluster in clusters for place in range(len(cluster))]


def _first(cluster: Sequence[float], gap: float) -> float:
    return float(np.mean(cluster)) - gap * (len(cluster) - 1) / 2


def _grouped_heights(names: Sequence[str]) -> list[float]:
    """0, −1, −2, … with an extra half step between the kinds of slices."""
    heights, height = [], 0.0
    for place, name in enumerate(names):
        if place:
            height -= 1.0 if name.partition("/")[0] == names[place - 1].partition("/")[0] else 1.5
        heights.append(height)
    return heights


def _slice_label(system: System, name: str) -> str:
    users = int(system.evaluation.slices[name]["users"])
    return f"{slice_words(name)}  ({users:,} user{'' if users == 1 else 's'})"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read mathematics between two of them
