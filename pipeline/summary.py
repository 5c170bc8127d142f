"""A report in a dozen lines for the terminal."""

from pathlib import Path

from eval.results import Report
from eval.words import interval_words

COLUMNS = ("ndcg@10", "recall@10", "recall@100", "coverage@10")


def summary(report: Report, page: Path) -> str:
    """Systems by NDCG@10, the verdicts, what was left out, and where the page is."""
    width = max(len(system.name) for system in report.systems)
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>11}" for name in COLUMNS)]
    for system in report.ranked:
        figures = (system.evaluation.metrics.get(name) for name in COLUMNS)
        lines.append(
            f"{system.name:{width}}  "
            + "  ".join(f"{value:11.4f}" if value is not None else " " * 11 for value in figures)
        )
    for found in report.comparisons:
        test = found.test
        lines.append(
            f"{found.question} {test.verdict}: {found.ours} against {found.theirs}, {found.metric} "
            f"{test.difference:+.4f} ({interval_words(test)})"
        )
    if report.frontier is not None:
        front = report.frontier.front
        lines.append(f"frontier: {len(report.frontier.points)} settings; {len(front) or 'none'} that no other beats")
        lines += [
            f"  {point.ndcg10:.4f} for {point.mean_ms:.1f} ms: {point.setting.words} ({point.test.verdict})"
            for point in front
        ]
    lines += [f"{name}: left out, {reason}" for name, reason in report.left_out.items()]
    lines += list(report.notes)
    lines.append(f"{report.fit}; {report.split}; report: {page}")
    return "\n".join(lines)
