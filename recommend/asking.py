"""What a service is asked for, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from recommend.answer import Answer
from recommend.recommender import Rerank
from recommend.serving import Serving
from rerank.budget import Budget


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants: for exactly one of a user, a history of item ids (oldest first) and a query in words."""

    user_id: str | None = None
    history: Sequence[str] | None = None
    query: str | None = None
    limit: int | None = None
    depth: int | None = None
    budget: Budget = field(default_factory=Budget)
    where: str | None = None
    exclude_items: Sequence[str] = ()
    exclude_known: bool | None = None
    rerank: Rerank = Rerank.AUTO
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """An answer, and what it was made from.

    Attributes:
        unknown_items: ids that were asked with and that the catalog lacks; they were passed over.
        known_user: whether log or events have the user; True where none was named.
        lookup_ms: of finding the history or reading the query.
    """

    answer: Answer
    serving: Serving
    unknown_items: tuple[str, ...]
    known_user: bool
    lookup_ms: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a deletion took away.

    Attributes:
        events: deleted.
        history_items: of the log, which are not used any more.
        in_data: whether the published data set has the user, and so holds what the log had.
    """

    events: int
    history_items: int
    in_data: bool
