"""Changes made live, when a new index takes the place of the one that they were made on."""

from collections.abc import Sequence

from data.prepared import load_prepared
from index.published import PublishedIndex, read_changes, write_journal
from pipeline.change_index import encoder
from pipeline.run_log import RunLog
from recommend.catalog import carried_over
from recommend.live_items import LiveItems
from recommend.release import load_base
from retrieval.folder import read_card
from store.artifacts import Release, Run

NAMED = 5


def carried_journal(run: Run, new: Release, *, log: RunLog) -> str | None:
    """A journal of what was changed live on what is published, for `new`, which is not published yet.

    On the same data set every change stays, its texts read again where the encoder is another. A new data set tells
    itself which items there are: of the changes, only items that were added and that it lacks stay.

    Args:
        new: dataset, retriever, vectors and index.

    Returns:
        The journal's name, to be published with `new`; None where there is nothing to carry over.
    """
    old = run.release()
    if old.index is None or old.retriever is None or old.dataset is None:
        return None
    if (old.dataset, old.retriever, old.index) == (new.dataset, new.retriever, new.index):
        return old.live
    # Neither the old index nor its vectors are looked at: they may be damaged, and this the command that mends it.
    folded = LiveItems.load(run.root / "artifacts" / "index" / old.index)
    changes = read_changes(run, old)
    if folded is None and not changes:
        return None
    dataset, _ = load_prepared(run.artifact("dataset", old.dataset))
    live = (folded or LiveItems.none(dataset.catalog, 0)).after(changes)
    base = load_base(run, PublishedIndex(run, new), with_reranker=False)
    carried = carried_over(
        live,
        dataset,
        base,
        encode=lambda texts: encoder(run, new, log, texts),
        text_is_alike=_text_key(run, old) == _text_key(run, new),
    )
    _tell(log, "changed live are told by the new catalog", carried.known)
    _tell(log, "removed live are in the new catalog and shown again", carried.shown_again)
    if not carried.changes:
        return None
    name = write_journal(run, carried.changes)
    counts = {change.kind.name.lower(): len(change.rows) for change in carried.changes}
    log.record({"event": "carried over", "from": old.index, **counts})
    return name


def _text_key(run: Run, release: Release) -> str:
    return read_card(run.artifact("retriever", release.retriever or "")).text_vectors


def _tell(log: RunLog, what: str, ids: Sequence[str]) -> None:
    if ids:
        log.say(f"{len(ids):,} items {what}: {', '.join(ids[:NAMED])}{', …' if len(ids) > NAMED else ''}")
