"""Items put into and taken out of what is served, several at a time where they come at once."""

import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recommend.catalog import LiveCatalog
from recommend.item_file import empty_item, id_column, items_in, reading
from recommend.microbatch import MicroBatch
from store.artifacts import Run
from store.errors import BadInput, RunBusy, TandemError, UnknownId

TOGETHER = 32
"""Callers whose changes are shown together."""
LOCK_S = 5.0
"""How long another command that writes to the run is waited for, and the turn among callers of this process."""


@dataclass(frozen=True, slots=True)
class ItemChange:
    """What is wanted of one item.

    Attributes:
        values: by column of the catalog's file; None: the item is to go.
    """

    item_id: str
    values: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ItemState:
    """What came of it: "added", "updated", "unchanged" or "removed", and columns that the catalog does not have."""

    state: str
    ignored: tuple[str, ...] = ()


class ItemWriter:
    """Writes changes down, durably, and has them shown; safe for several threads.

    Args:
        run: the run directory.
        catalog: gives that of the present release.
        changed: called once the changes of some callers are written, before they are told.
        alone: held meanwhile, so that no other release takes the catalog's place. A lock that its holder may take
            again.
    """

    def __init__(
        self,
        run: Run,
        catalog: Callable[[], LiveCatalog],
        changed: Callable[[], object],
        *,
        alone: threading.RLock,
    ) -> None:
        self._run, self._catalog, self._changed, self._alone = run, catalog, changed, alone
        self._calls: MicroBatch[ItemChange, ItemState | Exception] = MicroBatch(self._write_all, most=TOGETHER)

    def write(self, change: ItemChange) -> ItemState:
        """On disk and shown when this returns.

        Raises:
            UnknownId: when an item that is to go was never there.
            BadInput: when a value cannot be used, or nothing would be left.
            RunBusy: when another command is writing to the run, or another release is being opened.
            Mismatch: when another release is published that is not served yet.
            Crowded: when other callers were served for too long.
            NoSpace: when the disk refuses the write.
        """
        found = self._calls(change, timeout_s=LOCK_S)
        if isinstance(found, Exception):
            raise found
        return found

    def _write_all(self, changes: Sequence[ItemChange]) -> list[ItemState | Exception]:
        if not self._alone.acquire(timeout=LOCK_S):
            return [RunBusy("another release is being opened: try again when it is served")] * len(changes)
        try:
            with self._run.lock(wait_s=LOCK_S):
                catalog = self._catalog()
                catalog.keep_up()
                done = [self._written(catalog, change) for change in changes]
            self._changed()
        except (TandemError, OSError) as error:
            # Nothing of a change is at fault: to ask for each alone would be to wait as often for the same.
            return [error] * len(changes)
        finally:
            self._alone.release()
        return done

    def _written(self, catalog: LiveCatalog, change: ItemChange) -> ItemState | Exception:
        try:
            return self._write(catalog, change)
        except (TandemError, OSError, ValueError) as error:  # its caller's alone
            return error

    def _write(self, catalog: LiveCatalog, change: ItemChange) -> ItemState:
        if change.values is None:
            if not (catalog.is_shown([change.item_id])[0]):
                raise UnknownId(f"item {change.item_id!r} is not in the catalog")
            catalog.remove([change.item_id])
            return ItemState("removed")
        read = reading(self._run, catalog.published.release)
        there = catalog.is_shown([change.item_id])[0]
        row: dict[str, Any] = {} if there else {**empty_item(read, catalog.catalog)}
        row |= {**change.values, id_column(read.config): change.item_id}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "item.jsonl"
            file.write_text(json.dumps(row, default=str) + "\n", encoding="utf-8")
            more = items_in(file, read, catalog.catalog, where="the item", before=catalog.now if there else None)
        if more.items[0, 0] != change.item_id:
            raise BadInput(f"the item names itself {more.items[0, 0]!r}, the address {change.item_id!r}")
        found = catalog.update(more) if there else catalog.add(more)
        if not found.ids:
            return ItemState("unchanged", more.ignored)
        return ItemState("updated" if there else "added", more.ignored)
