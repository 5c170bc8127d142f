"""The catalog of what a run serves, for its one writer: items are read, given vectors, and written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from data.more_items import Aligned
from data.schema import ITEM_ID, TEXT, VECTOR, Catalog, Dataset, Rows, Scores, brings_vectors, unit_vectors
from index.changes import Change, ChangeKind
from index.published import PublishedIndex
from recommend.live_items import LiveItems, beside
from recommend.release import Stages, as_changed, live_items, load_base
from rerank.base import Reranker
from retrieval.growth import ReadItems
from retrieval.retriever import Retriever, some_queries
from store.artifacts import Release, Run, Verify
from store.errors import BadInput, Mismatch, UnknownId

Encode = Callable[[Sequence[str]], Scores]
"""Texts → (n, E) raw text vectors of length 1, by the encoder of the retriever."""

NAMED = 5
"""Ids that a message names."""


class Changed(NamedTuple):
    """What a request has done.

    Attributes:
        ids: items that were changed.
        unchanged: items that were as wanted before.
        read: texts that went through the encoder.
    """

    ids: list[str]
    unchanged: list[str]
    read: int


@dataclass(frozen=True)
class Carried:
    """Changes of an earlier release for a new one.

    Attributes:
        changes: for the new journal.
        known: ids that were added or changed, and that the new data set tells itself.
        shown_again: ids that were removed, and that the new data set has.
    """

    changes: tuple[Change, ...]
    known: tuple[str, ...] = ()
    shown_again: tuple[str, ...] = ()


class LiveCatalog:
    """Adds, updates and removes items of what is published; the caller holds the run's lock.

    Args:
        run: the run directory.
        encode: reads texts; called only for those that are new.
        opened: gives the reranker of a key; None: the stages are without one.

    Raises:
        MissingStep, CorruptArtifact, Mismatch: as `load_stages`.
    """

    def __init__(self, run: Run, encode: Encode, *, opened: Callable[[str], Reranker] | None = None) -> None:
        self.published = PublishedIndex(run, verify=Verify.FULL)
        self._encode = encode
        self._models = self.published.release.models
        self._base = load_base(run, self.published, with_reranker=opened is not None, opened=opened)
        self._begin()

    def _begin(self) -> None:
        """With all that has changed in what is published."""
        self._live = live_items(self._base, self.published)
        self._taken = len(self.published.changes)
        self._stages: Stages | None = None

    @property
    def stages(self) -> Stages:
        """What is served now."""
        if self._stages is None:
            self._stages = as_changed(self._base, self.published, self._live)
        return self._stages

    def keep_up(self) -> bool:
        """Takes in what others have changed since; whether that was anything.

        Raises:
            Mismatch: when another release is published meanwhile: it has to be opened anew.
            CorruptArtifact: when a change cannot be read.
        """
        before = self.published.release.live
        self.published.refresh()
        if self.published.release.models != self._models:
            raise Mismatch("another release has been published")
        if before not in (None, self.published.release.live):
            # The same index with other changes, or with none: what was gone back to.
            self._begin()
            return True
        return self._take_in()

    def _take_in(self) -> bool:
        """What the published index has and this catalog has not, yet; whether that was anything."""
        new = self.published.changes[self._taken :]
        if new:
            self._live, self._stages = self._live.after(new), None
            self._taken += len(new)
        return bool(new)

    @property
    def catalog(self) -> Catalog:
        """As it is now, removed items among the others."""
        return self.stages.dataset.catalog

    def is_shown(self, ids: Sequence[str]) -> list[bool]:
        """Whether each id is an item that can be recommended."""
        known = [self.catalog.vocabulary.row(one) if one in self.catalog.vocabulary else -1 for one in ids]
        return self._has(known)

    def now(self, ids: Sequence[str]) -> pl.DataFrame:
        """What the catalog has of items that can be recommended, in that order.

        Raises:
            UnknownId: when an item is not there.
        """
        if strange := [one for one, shown in zip(ids, self.is_shown(ids), strict=True) if not shown]:
            raise UnknownId(f"{_told(strange, len(ids))} not in the catalog: add them with 'index add'")
        return self.catalog.items[self.catalog.vocabulary.rows(ids)]

    def add(self, more: Aligned) -> Changed:
        """Puts items into the catalog; those that are there and the same are left alone.

        Raises:
            BadInput: when an item is there and differs; nothing is added then.
            NoSpace: when the disk refuses the write; nothing is added then.
        """
        ids = more.items[ITEM_ID].to_list()
        shown = pl.Series(self.is_shown(ids), dtype=pl.Boolean)
        there, new = more.items.filter(shown), more.items.filter(~shown)
        differs = there.filter(pl.Series(_differing(there, self._rows_of(there)), dtype=pl.Boolean))
        if len(differs):
            raise BadInput(
                f"{_told(differs[ITEM_ID].to_list(), len(ids))} in the catalog already, with other values: "
                "change them with 'index update'"
            )
        changes, read = self._put(new)
        self._apply(*changes)
        return Changed(new[ITEM_ID].to_list(), there[ITEM_ID].to_list(), read)

    def update(self, more: Aligned) -> Changed:
        """Changes items of the catalog; columns that the file lacks stay, and only texts that differ are read.

        Raises:
            UnknownId: when an item is not there; nothing is changed then.
            NoSpace: as `add`.
        """
        now = self.now(more.items[ITEM_ID].to_list())
        wanted = more.items.with_columns(now[name] for name in more.missing)
        changed = pl.Series(_differing(wanted, now), dtype=pl.Boolean)
        same_text = wanted[TEXT] == now[TEXT]
        if brings_vectors(wanted):
            same_text &= wanted[VECTOR] == now[VECTOR]
        noted = wanted.filter(changed & same_text)
        changes, read = self._put(wanted.filter(changed & ~same_text))
        if len(noted):
            changes.append(Change(ChangeKind.NOTE, self._row_numbers(noted), beside=beside(noted)))
        self._apply(*changes)
        return Changed(wanted.filter(changed)[ITEM_ID].to_list(), wanted.filter(~changed)[ITEM_ID].to_list(), read)

    def remove(self, ids: Sequence[str]) -> Changed:
        """Takes items out of every answer; those removed before are left alone.

        Raises:
            UnknownId: when an id was never in the catalog; nothing is removed then.
            BadInput: when nothing would be left.
            NoSpace: as `add`.
        """
        distinct = list(dict.fromkeys(ids))
        if strange := [one for one in distinct if one not in self.catalog.vocabulary]:
            raise UnknownId(f"{_told(strange, len(distinct))} not in the catalog: nothing was removed")
        shown = self.is_shown(distinct)
        gone = [one for one, there in zip(distinct, shown, strict=True) if there]
        if len(gone) == len(self.published.index.live_rows):
            raise BadInput("every item would be removed: an index needs at least one")
        if gone:
            self._apply(Change(ChangeKind.REMOVE, self.catalog.vocabulary.rows(gone)))
        return Changed(gone, [one for one, there in zip(distinct, shown, strict=True) if not there], 0)

    def compact(self, *, say: Callable[[str], None] = lambda line: None) -> Release:
        """Folds all changes into a new base; `say` and errors as PublishedIndex.compact."""
        retriever, histories = self.stages.retriever, self.stages.dataset.interactions
        return self.published.compact(
            vectors=lambda rows: retriever.item_vectors[rows],
            queries=lambda most: some_queries(retriever, histories, most),
            write_beside=self._live.save,
            say=say,
        )

    def _put(self, items: pl.DataFrame) -> tuple[list[Change], int]:
        """What gives items new vectors, and rows where they never had one; and how many texts were read for it."""
        if not len(items):
            return [], 0
        vocabulary, next_row = self.catalog.vocabulary, len(self.catalog)
        new = [one not in vocabulary for one in items[ITEM_ID].to_list()]
        numbers = np.array(
            [-1 if fresh else vocabulary.row(one) for one, fresh in zip(items[ITEM_ID], new, strict=True)]
        )
        numbers[new] = next_row + np.arange(sum(new))
        order = np.argsort(numbers)
        items, rows = items[order], numbers[order]
        text, read = self._text_of(rows, items)
        change, _, _ = put(self._base.retriever, self._live, rows, items, text, now=self.stages.retriever)
        return [change], read

    def _text_of(self, rows: Rows, items: pl.DataFrame) -> tuple[Scores, int]:
        """(n, E) centred text vectors, and how many texts had to be read: not those that an item had before.

        Items that bring their vectors along are not read.
        """
        retriever, texts = self.stages.retriever, items[TEXT].to_list()
        if brings_vectors(items):
            return retriever.text_space(unit_vectors(items)), 0
        known = self.catalog.texts
        unread = [row >= len(known) or known[row] != text for row, text in zip(rows.tolist(), texts, strict=True)]
        vectors = retriever.text[np.where(unread, 0, rows)]
        if any(unread):
            new = [text for text, wanted in zip(texts, unread, strict=True) if wanted]
            vectors[unread] = retriever.text_space(self._encode(new))
        return vectors, sum(unread)

    def _apply(self, *changes: Change) -> None:
        if changes:
            self.published.change(*changes)
            self._take_in()

    def _row_numbers(self, items: pl.DataFrame) -> Rows:
        return self.catalog.vocabulary.rows(items[ITEM_ID].to_list())

    def _rows_of(self, items: pl.DataFrame) -> pl.DataFrame:
        """What the catalog has of the same items now."""
        return self.catalog.items[self._row_numbers(items)]

    def _has(self, rows: Sequence[int]) -> list[bool]:
        return [bool(there) for there in self.published.index.has(np.array(rows, dtype=np.int64))]


def put(
    fitted: Retriever, live: LiveItems, rows: Rows, items: pl.DataFrame, text: Scores, *, now: Retriever
) -> tuple[Change, LiveItems, Retriever]:
    """The change that gives items their vectors, and the catalog and retriever after it.

    Args:
        fitted: without any change.
        live: all changes so far.
        rows: (n,) of the items, rising; new ones follow those that `live` has.
        items: n rows of the catalog.
        text: (n, E) their centred text vectors.
        now: the retriever over the catalog before this change.
    """
    read = ReadItems.of(now, rows, items[TEXT].to_list(), text)
    carried = beside(items, read)
    after = live.after([Change(ChangeKind.PUT, rows, beside=carried)])
    retriever = after.over_retriever(fitted, now.index)
    return Change(ChangeKind.PUT, rows, retriever.item_vectors[rows], carried), after, retriever


def carried_over(live: LiveItems, before: Dataset, base: Stages, *, encode: Encode, text_is_alike: bool) -> Carried:
    """What was changed live, for a retriever or a data set that is new.

    On the same data set every change stays. Another one tells itself what it has: of the changes only those items
    stay that were added and that it lacks.

    Args:
        live: the changes.
        before: the data set on which they were made, without them.
        base: what is new, without any change.
        encode: reads texts.
        text_is_alike: whether both have the same text vectors, so that none need be read again.
    """
    if before.catalog.items.equals(base.dataset.catalog.items):
        rows = live.read.rows
        text = live.read.text if text_is_alike else _read(base, live.read.texts, encode)
        changes = _put_all(base, rows, live.at(rows), text)
        noted = np.setdiff1d(live.changed_rows, rows)
        if len(noted):
            changes.append(Change(ChangeKind.NOTE, noted, beside=beside(live.at(noted))))
        if len(live.removed):
            changes.append(Change(ChangeKind.REMOVE, live.removed))
        return Carried(tuple(changes))
    vocabulary = base.dataset.catalog.vocabulary
    now = live.over_dataset(before).catalog.vocabulary.ids
    gone = {now[row] for row in live.removed.tolist()}
    ids = [now[row] for row in live.changed_rows.tolist()]
    first = len(before.catalog)
    stays = [row for row, one in zip(live.changed_rows.tolist(), ids, strict=True) if row >= first and one not in gone]
    stays = [row for row in stays if now[row] not in vocabulary]
    items = _in_columns(live.at(np.array(stays, dtype=np.int64)), base.dataset.catalog.items)
    rows = len(base.dataset.catalog) + np.arange(len(items))
    return Carried(
        tuple(_put_all(base, rows, items, _read(base, items[TEXT].to_list(), encode))),
        known=tuple(one for one in ids if one in vocabulary and one not in gone),
        shown_again=tuple(sorted(one for one in gone if one in vocabulary)),
    )


def _put_all(base: Stages, rows: Rows, items: pl.DataFrame, text: Scores) -> list[Change]:
    if not len(rows):
        return []
    none = LiveItems.none(base.dataset.catalog, base.retriever.text.shape[1])
    return [put(base.retriever, none, rows, items, text, now=base.retriever)[0]]


def _read(base: Stages, texts: Sequence[str], encode: Encode) -> Scores:
    width = base.retriever.text.shape[1]
    return base.retriever.text_space(encode(texts)) if len(texts) else np.zeros((0, width), dtype=np.float32)


def _in_columns(items: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """The same items with the columns of another catalog; what does not fit its types becomes null."""
    columns = [
        items[name].cast(kind, strict=False) if name in items.columns else pl.Series(name, [None] * len(items), kind)
        for name, kind in like.schema.items()
    ]
    return pl.DataFrame(columns)


def _differing(some: pl.DataFrame, others: pl.DataFrame) -> list[bool]:
    # By what is printed: NaN is then equal to itself.
    return [repr(one) != repr(other) for one, other in zip(some.rows(), others.rows(), strict=True)]


def _told(ids: Sequence[str], of: int) -> str:
    named = ", ".join(map(repr, ids[:NAMED])) + (", …" if len(ids) > NAMED else "")
    return f"{len(ids):,} of {of:,} items ({named}) {'is' if len(ids) == 1 else 'are'}"
