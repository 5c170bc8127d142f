"""A log of files, and what a service has learnt since: events to be added, users to be left out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data.schema import ITEM_ID, POSITION, TIMESTAMP, USER_ID
from recommend.events import Events


@dataclass(frozen=True)
class LiveLog:
    """What a run's service has stored.

    Attributes:
        events: user_id, item_id, timestamp (Unix seconds), in the order in which they came.
        last_event: number of the last of them; what is stored meanwhile has a higher one. 0 without any.
        service: where users who asked to be forgotten are marked.
    """

    events: pl.DataFrame
    last_event: int
    service: Events

    @classmethod
    def of(cls, root: Path) -> "LiveLog | None":
        """That of the run at `root`; None where nothing was ever served from it."""
        service = Events.of(root)
        if service is None:
            return None
        last = service.last_number()
        return cls(service.frame(last), last, service)

    @property
    def made_from(self) -> dict[str, Any]:
        """What a data set with it depends on; empty where it changes nothing."""
        marks = self.service.marks()
        if not len(self.events) and not marks:
            return {}
        return {"live": {"events": self.last_event, "forgotten": marks}}

    def amended(self, log: pl.DataFrame, item_ids: pl.Series) -> tuple[pl.DataFrame, dict[str, int], int]:
        """A log without whom to forget and with the events, how many rows went, and how many came.

        An event with an item that the catalog lacks stays out, as does one that the log holds already. Of a user who
        asked to be forgotten goes what happened until then, and everything without a time.

        Args:
            log: user_id, item_id and, where known, timestamp (s), position and other columns, in the order of the file.
            item_ids: of the catalog.
        """
        times = [TIMESTAMP] if TIMESTAMP in log.columns else []
        asked = self.service.forgotten(log[USER_ID]).rename({TIMESTAMP: "until"})
        marked = log.join(asked, on=USER_ID, how="left", maintain_order="left")
        later = pl.col(TIMESTAMP).is_not_null() & (pl.col(TIMESTAMP) > pl.col("until")) if times else pl.lit(False)
        kept = marked.filter(pl.col("until").is_null() | later).drop("until")
        events = self.events.filter(pl.col(ITEM_ID).is_in(item_ids.implode()))
        if times:
            events = events.join(log, on=[USER_ID, ITEM_ID, TIMESTAMP], how="anti", maintain_order="left")
        new = events.select(USER_ID, ITEM_ID, *times)
        if POSITION in log.columns:
            after = pl.Series(POSITION, range(1, len(new) + 1), dtype=pl.Int64) + (log[POSITION].max() or 0)
            new = new.with_columns(after)
        joined = pl.concat([kept, new], how="diagonal_relaxed")
        return joined, {"forgotten_users": len(log) - len(kept)}, len(new)
