"""An answer as a table for the terminal, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recommend.answer import Answer, Basis

HISTORY_SHOWN = 5
REASON_CHARS = 24


def print_answer(
    console: Console,
    answer: Answer,
    *,
    heading: str,
    last_titles: Sequence[str],
    title_of: dict[str, str],
    price_of_1000: float = 0.0,
) -> None:
    """The last titles of the history, the recommendations with places, scores and reasons, and the cost.

    Args:
        last_titles: most recent first.
        title_of: item_id → title, for the reasons.
        price_of_1000: of answers like this one; 0 where no prices are set.
    """
    console.print(Text(heading, style="bold"))
    if last_titles:
        console.print(Text("last taken: " + " · ".join(last_titles[:HISTORY_SHOWN])))
    if answer.basis is Basis.POPULAR:
        console.print(Text("no history: these are the popular items of the last days"))
    table = Table(show_edge=False, pad_edge=False)
    for name, justify in (("", "right"), ("title", "left"), ("retrieved", "right"), ("reranked", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "title")  # type: ignore[arg-type]
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("because of", justify="left")
    for place, item in enumerate(answer.items, start=1):
        reranked = "–" if item.rerank_score is None else f"#{item.rerank_rank} ({item.rerank_score:+.2f})"
        reasons = " · ".join(_cut(title_of[item_id]) for item_id in item.because)
        # Titles are data: Text keeps what looks like markup as it is.
        table.add_row(
            str(place),
            Text(item.title),
            f"#{item.retrieval_rank} ({item.retrieval_score:+.2f})",
            reranked,
            f"{item.score:+.2f}",
            Text(reasons),
        )
    console.print(Text(answer.no_items) if answer.no_items else table)
    if answer.not_reranked:
        console.print(Text(f"not reranked: {answer.not_reranked}"))
    if answer.left_out:
        console.print(Text(f"left out: {answer.left_out}"))
    console.print(Text(cost_line(answer)))
    if price_of_1000:
        console.print(Text(f"1,000 answers like this one cost {price_of_1000:.4g}"))


def cost_line(answer: Answer) -> str:
    """Candidates, tokens and milliseconds of each stage, in one line."""
    cost = answer.cost
    remembered = f", {cost.cached_tokens} of them remembered" if cost.cached_tokens else ""
    tied = ", all tied" if cost.tied else ""
    return (
        f"cost: {cost.candidates} candidates, {cost.reranked} reranked{tied}, {cost.prompt_tokens} tokens{remembered}; "
        f"retrieval {cost.retrieval_ms:.1f} ms, reranking {cost.rerank_ms:.1f} ms, reasons {cost.explain_ms:.1f} ms"
        f" ({answer.release_fit} fit)"
    )


def answer_as_json(answer: Answer) -> dict[str, Any]:
    """A plain dict with the fields of Answer."""
    return asdict(answer)


def _cut(title: str) -> str:
    return title if len(title) <= REASON_CHARS else title[: REASON_CHARS - 1].rstrip() + "…"
