"""Steps of an index's life on the shop's run, most of them in this process."""

from collections.abc import Sequence
from pathlib import Path

from index.published import PublishedIndex
from pipeline.change_index import add_items, remove_items, update_items
from pipeline.run_log import RunLog
from recommend.catalog import Changed
from recommend.recommender import RecommendConfig, RecommendedItem, Recommender, Rerank
from recommend.release import encoder_of, load_stages
from retrieval.encode import encode_texts
from store.artifacts import Run
from tests.pipeline.commands import Done, Faults, run
from tests.pipeline.shop import write_rows
from tests.rerank.tiny_bert import WORDS

HEADER = ["item_id", "title", "genres"]
TWIN = ["twin", f"{WORDS[30]} {WORDS[31]}", "genre2"]
"""Reads as item 30 does: it follows 29 and is followed by 31, as far as words tell."""
LATE = ["late", f"{WORDS[1]} {WORDS[2]}", "genre0"]
MOVED = ["i40", f"{WORDS[10]} {WORDS[11]}", "genre2"]
"""Item 40 with the text of item 10."""
TWENTY_FIVE = RecommendConfig(k=25, candidates=30, depth=8)


def tandem(command: str, root: Path, *more: object, faults: Faults | None = None) -> Done:
    return run(*command.split(), *more, "--run", root, cwd=root.parent, faults=faults)


def items(root: Path, *rows: list[str], name: str = "items.csv", header: list[str] | None = None) -> Path:
    return write_rows(root.parent / name, header or HEADER, list(rows))


def log(root: Path) -> RunLog:
    return RunLog(Run(root), "test", quiet=True)


def add(root: Path, *rows: list[str], header: list[str] | None = None) -> Changed:
    return add_items(Run(root), items(root, *rows, header=header), log=log(root))


def update(root: Path, *rows: list[str], header: list[str] | None = None) -> Changed:
    return update_items(Run(root), items(root, *rows, header=header), log=log(root))


def remove(root: Path, *ids: str) -> Changed:
    return remove_items(Run(root), ids, log=log(root))


def opened(root: Path) -> Recommender:
    return Recommender(load_stages(Run(root), Run(root).release()), TWENTY_FIVE)


def recommended(
    source: Path | Recommender, history: Sequence[str] = (), *, user: str = "", query: str = "", k: int = 25
) -> tuple[RecommendedItem, ...]:
    recommender = source if isinstance(source, Recommender) else opened(source)
    rows = recommender.history_of(user) if user else recommender.item_rows(history)
    vector = None
    if query:
        assert isinstance(source, Path)
        encoder, settings = encoder_of(Run(source), Run(source).release())
        vector = recommender.text_vector(encode_texts(encoder, [query], settings))[0]
    return recommender.recommend(rows, k=k, query_vector=vector, rerank=Rerank.ALWAYS).items


def ids(source: Path | Recommender, history: Sequence[str] = (), **asked) -> list[str]:
    return [item.item_id for item in recommended(source, history, **asked)]


def shown(root: Path) -> set[str]:
    """Every item that somebody can be recommended: the whole list of an empty history, which must agree with index."""
    recommender = opened(root)
    live = PublishedIndex(Run(root)).index.live_rows
    there = {recommender.catalog.vocabulary.ids[row] for row in live.tolist()}
    assert set(ids(recommender, k=len(live))) == there
    return there
