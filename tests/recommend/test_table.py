"""An answer as people and as machines read it."""

import io
import json
from dataclasses import replace

from rich.console import Console

from recommend.answer import Answer, Basis, Cost, RecommendedItem
from recommend.table import answer_as_json, print_answer


def item(title: str, *, read: bool) -> RecommendedItem:
    return RecommendedItem("id1", title, 1.5, 3, 1 if read else None, 0.25, 2.0 if read else None, ("h1", "h2"))


def answer(*items: RecommendedItem, basis: Basis = Basis.HISTORY, not_reranked: str = "") -> Answer:
    return Answer(basis, items, Cost(100, 20, 1234, 400, 1.25, 250.0, 0.5), "evaluation", not_reranked)


def printed(found: Answer, last_titles=("Alien (1979)",)) -> str:
    file = io.StringIO()
    titles = {"h1": "[bold]Brazil[/bold] (1985)", "h2": "A title of more than twenty-four letters"}
    print_answer(Console(file=file, width=200), found, heading="for user 42", last_titles=last_titles, title_of=titles)
    return file.getvalue()


def test_titles_places_scores_reasons_and_cost_are_shown():
    text = printed(answer(item("Blade Runner (1982)", read=True), item("Heat (1995)", read=False)))
    read, unread = (line for line in text.splitlines() if "(19" in line and "#" in line)
    assert "#3 (+0.25)" in read
    assert "#1 (+2.00)" in read
    assert "–" in unread
    assert "last taken: Alien (1979)" in text
    assert (
        "100 candidates, 20 reranked, 1234 tokens, 400 of them remembered; retrieval 1.2 ms, reranking 250.0 ms" in text
    )
    assert "(evaluation fit)" in text
    tied = answer(item("Heat (1995)", read=True))
    tied = replace(tied, cost=replace(tied.cost, tied=True))
    assert "100 candidates, 20 reranked, all tied, 1234 tokens" in printed(tied)


def test_what_looks_like_markup_in_data_is_left_as_it_is():
    text = printed(answer(item("[red]Odd[/red] [title]", read=True)), last_titles=("[b]last[/b]",))
    assert "[red]Odd[/red] [title]" in text
    assert "[b]last[/b]" in text
    assert "[bold]Brazil[/bold]" in text
    assert "more than twenty-four letters" not in text


def test_an_answer_without_history_says_so():
    assert "no history: these are the popular items of the last days" in printed(answer(basis=Basis.POPULAR), ())


def test_why_the_reranker_was_not_asked_is_said_where_it_was_not():
    assert "not reranked" not in printed(answer(item("Heat", read=True)))
    assert "not reranked: it had no weight" in printed(answer(not_reranked="it had no weight"))


def test_what_a_budget_left_out_is_said():
    whole = answer(item("Heat", read=True))
    assert "left out" not in printed(whole)
    assert "left out: fewer candidates (max_tokens)" in printed(
        replace(whole, left_out="fewer candidates (max_tokens)")
    )


def test_json_holds_everything():
    found = json.loads(json.dumps(answer_as_json(answer(item("Heat", read=False)))))
    assert found["basis"] == "history"
    assert found["items"][0]["because"] == ["h1", "h2"]
    assert found["items"][0]["rerank_rank"] is None
    assert found["cost"]["prompt_tokens"] == 1234
    assert found["release_fit"] == "evaluation"
