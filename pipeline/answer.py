"""One question of one person, answered on the terminal."""

import json
import sys
from dataclasses import dataclass

from rich.console import Console

from data.schema import Histories, Rows
from pipeline.workspace import Workspace
from recommend.answer import Answer
from recommend.item_filter import ALL_ITEMS, ItemFilter
from recommend.ledger import LEDGER, add_to_ledger
from recommend.recommender import Recommender, Rerank
from recommend.release import load_stages
from recommend.table import answer_as_json, print_answer
from recommend.wishes import WishReader
from rerank.budget import Budget
from store.errors import BadInput, UnknownId

WAY_OUT = "recommend from items with --history ITEM,ITEM, or from a wish with --query 'text'"


@dataclass(frozen=True)
class Wish:
    """Whom or what to recommend for: exactly one of user, history and query; which items, and how."""

    user: str | None = None
    history: str | None = None
    query: str | None = None
    k: int | None = None
    depth: int | None = None
    rerank: Rerank = Rerank.AUTO
    budget: Budget | None = None
    items: ItemFilter = ALL_ITEMS

    @property
    def given(self) -> list[str]:
        """Which of user, history and query are given."""
        return [value for value in (self.user, self.history, self.query) if value is not None]

    def check(self) -> None:
        """Raises BadInput unless exactly one of them is given."""
        if len(self.given) != 1:
            raise BadInput("give exactly one of --user ID, --history ITEM,ITEM and --query 'text' (or --all -o FILE)")


def answer(ws: Workspace, wish: Wish, *, as_json: bool) -> Answer:
    """Recommends from what is published and prints a table, or JSON.

    Raises:
        BadInput: when not exactly one of user, history and query is given, or no item passes the filter.
        UnknownId: when the user or an item of the history is not known; the message names the way out.
    """
    wish.check()
    ledger = ws.run.root / LEDGER
    recommender = Recommender(load_stages(ws.run, ws.run.release()), ws.config.recommending, ledger=ledger)
    history = _history(recommender, wish)
    about = recommender.about_of(wish.user) if wish.user is not None else ""
    where = wish.items.mask(recommender.catalog, recommender.retriever.available)
    vector = None
    if wish.query is not None:
        vector = WishReader(ws.run, ws.run.release()).vector(wish.query, recommender)
    # The first search pays for threads and caches, as a server has done before it is asked.
    recommender.retrieve(Histories.of([history.tolist()]), 1)
    found = recommender.recommend(
        history,
        k=wish.k,
        depth=wish.depth,
        rerank=wish.rerank,
        budget=wish.budget,
        query_vector=vector,
        about=about,
        where=where,
    )
    add_to_ledger(ledger, found.cost.spent)
    if as_json:
        print(json.dumps(answer_as_json(found), ensure_ascii=False))
        return found
    titles, ids = recommender.catalog.titles, recommender.catalog.vocabulary.ids
    print_answer(
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140),
        found,
        heading=_heading(wish),
        last_titles=[titles[row] for row in history[::-1]],
        title_of={ids[row]: titles[row] for row in history},
        price_of_1000=found.cost.spent.cost_of_1000(ws.config.recommending.prices),
    )
    return found


def _history(recommender: Recommender, wish: Wish) -> Rows:
    try:
        if wish.user is not None:
            return recommender.history_of(wish.user)
        ids = [item_id.strip() for item_id in (wish.history or "").split(",")]
        return recommender.item_rows([item_id for item_id in ids if item_id])
    except UnknownId as error:
        raise UnknownId(f"{error}: {WAY_OUT}") from error


def _heading(wish: Wish) -> str:
    if wish.user is not None:
        return f"for user {wish.user}"
    return f"for the wish {wish.query!r}" if wish.query is not None else "for a history"
