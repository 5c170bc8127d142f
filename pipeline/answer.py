"""One question of one person, answered on the terminal."""

import json
import sys
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console

from data.columns import TableKind, renamed_columns
from data.schema import Histories, Mask, Rows
from pipeline.memory import less_for_lists, memory_for
from pipeline.workspace import Workspace
from recommend.answer import Answer
from recommend.events import Events
from recommend.histories import Known, disliked_by, known_of
from recommend.item_filter import ALL_ITEMS, ItemFilter, listed_ids
from recommend.ledger import LEDGER, add_to_ledger
from recommend.recommender import Recommender, Rerank
from recommend.release import load_stages
from recommend.table import answer_as_json, print_answer
from recommend.wishes import WishReader
from rerank.budget import Budget
from store.errors import BadInput, UnknownId

WAY_OUT = "recommend from items with --history ITEM,ITEM, or from a wish with --query 'text'"
IDS_SHOWN = 3


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
    events = Events.of(ws.run.root)
    known = _known(recommender, wish, events)
    history = known.item_rows
    renamed = renamed_columns(ws.config.data.columns, TableKind.CATALOG)
    where = wish.items.mask(recommender.catalog, recommender.retriever.available, renamed=renamed)
    vector = None
    if wish.query is not None:
        vector = WishReader(ws.run, ws.run.release()).vector(wish.query, recommender)
    with memory_for("recommending", less_for_lists(ws.config, recommender, "--rerank never")):
        # The first search pays for threads and caches, as a server has done before it is asked.
        recommender.retrieve(Histories.of([history.tolist()]), 1)
        found = recommender.recommend(
            history,
            k=wish.k,
            depth=wish.depth,
            rerank=wish.rerank,
            budget=wish.budget,
            query_vector=vector,
            about=known.about,
            disliked=None if wish.user is None else disliked_by(wish.user, recommender.dataset, events),
            where=where,
        )
    add_to_ledger(ledger, found.cost.spent)
    if not found.items:
        found = replace(found, no_items=_why_none(recommender, history, where, wish.items))
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


def _known(recommender: Recommender, wish: Wish, events: Events | None) -> Known:
    """What a server would know: of a user the log and the events since, and nothing of who asked to be forgotten."""
    try:
        if wish.user is not None:
            if events is None:
                return Known(recommender.history_of(wish.user), about=recommender.about_of(wish.user))
            known = known_of(wish.user, recommender.dataset, events)
            if not known.found:
                recommender.users.row(wish.user)
                raise UnknownId(f"user {wish.user!r} asked to be forgotten")
            return known
        return Known(recommender.item_rows(listed_ids(wish.history or "")))
    except UnknownId as error:
        way_out = WAY_OUT if wish.user is not None else _ids_as_they_are(recommender)
        raise UnknownId(f"{error}: {way_out}") from error


def _ids_as_they_are(recommender: Recommender) -> str:
    known = ", ".join(recommender.catalog.vocabulary.ids[:IDS_SHOWN])
    return f"--history takes ids as the catalog writes them, such as {known}; a wish goes into --query 'text'"


def _why_none(recommender: Recommender, history: Rows, where: Mask | None, items: ItemFilter) -> str:
    """Why a list is empty: whoever took all that may be shown is shown none of it again."""
    there = recommender.retriever.available if where is None else where
    shown = np.arange(len(recommender.catalog)) if there is None else np.flatnonzero(there)
    if not np.isin(shown, history).all():
        return "no item was found"
    which = f"that pass the filter ({items.told})" if where is not None else "of the catalog"
    return (
        f"no items: of the {len(shown):,} {which} every one was taken already, and what was taken does not come again"
    )


def _heading(wish: Wish) -> str:
    if wish.user is not None:
        return f"for user {wish.user}"
    return f"for the wish {wish.query!r}" if wish.query is not None else "for a history"
