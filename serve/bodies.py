"""What requests say."""

import time
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, model_validator

from recommend.asking import Ask
from recommend.events import Event
from recommend.recommender import Rerank
from rerank.budget import Budget
from serve.limits import ServeConfig
from store.errors import BadInput

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=20_000)]
LATEST_S = 253_402_300_799
"""The end of the year 9999: later moments are milliseconds taken for seconds."""


class Body(BaseModel):
    """Any request: JSON, nothing beyond what is named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BudgetBody(Body):
    """What the answer may cost; whatever is left out for it is told."""

    depth: Annotated[int, Field(ge=0)] | None = Field(None, description="candidates that the reranker may read")
    max_ms: Annotated[float, Field(ge=0)] | None = Field(None, description="milliseconds that the answer may take")
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="tokens that the reranker may read")


class RecommendBody(Body):
    """For exactly one of a user, a history and a query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "42", "limit": 10}, {"query": "a quiet film about the sea"}]}
    )

    user_id: Id | None = Field(
        None, description="a user of the log, or one whose events were sent; others get what is popular"
    )
    history: list[Id] | None = Field(None, description="item ids, oldest first; unknown ones are passed over and named")
    query: Text | None = Field(None, description="a wish in words")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="items wanted; unset: as configured")
    where: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="a condition on catalog columns, as in: price < 20 AND brand <> 'Acme'"
    )
    exclude_items: list[Id] = Field([], description="item ids that must not come back")
    exclude_known: bool | None = Field(
        None, description="leave out what the user has, or rated too low; unset: as configured"
    )
    budget: BudgetBody = Field(BudgetBody(), description="what the answer may cost")
    rerank: Rerank = Field(Rerank.AUTO, description="auto: where it helped on validation")
    explain: bool = Field(False, description="give reasons; costs several times what retrieval does")

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        if sum(one is not None for one in (self.user_id, self.history, self.query)) != 1:
            raise ValueError("give exactly one of user_id, history and query")
        if self.query is not None and not self.query.strip():
            raise ValueError("the query is empty: write what is wished for")
        return self

    def ask(self, limits: ServeConfig) -> Ask:
        """The same for a Service.

        Raises:
            BadInput: with every limit that is exceeded.
        """
        check(
            limits,
            limit=self.limit or 0,
            history=len(self.history or ()),
            exclude_items=len(self.exclude_items),
            depth=self.budget.depth or 0,
        )
        return Ask(
            user_id=self.user_id,
            history=self.history,
            query=self.query,
            limit=self.limit,
            depth=self.budget.depth,
            budget=Budget(max_tokens=self.budget.max_tokens, max_ms=self.budget.max_ms),
            where=self.where if self.where and self.where.strip() else None,
            exclude_items=self.exclude_items,
            exclude_known=self.exclude_known,
            rerank=self.rerank,
            explain=self.explain,
        )


class Document(Body):
    """A document with its text in a field."""

    model_config = ConfigDict(extra="ignore")

    text: Text = Field(description="what is read")


class RerankBody(Body):
    """In the shape that clients of Cohere and Jina send; fields that mean nothing here are passed over."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"query": "garden", "documents": ["a spade", "a novel"], "top_n": 1}]},
    )

    query: Text | None = Field(None, description="what was taken, one item a line, oldest first; or a question")
    user_id: Id | None = Field(None, description="in place of a query: whose history it is")
    documents: list[Text | Document] = Field(min_length=1, description="texts to be put in order")
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="results wanted; unset: all")
    return_documents: bool = Field(False, description="give the texts back with the results")
    model: Text | None = Field(None, description="passed over: there is one model, the release's")

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        if (self.query is None) == (self.user_id is None):
            raise ValueError("give exactly one of query and user_id")
        return self

    @property
    def texts(self) -> list[str]:
        """Of the documents."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class EventBody(Body):
    """A user took an item."""

    event_id: Id = Field(description="the sender's own name of it; a second delivery changes nothing")
    user_id: Id = Field(description="who")
    item_id: Id = Field(description="what")
    timestamp: Annotated[int, Field(ge=0, le=LATEST_S)] | None = Field(
        None, description="Unix seconds; unset: when it arrives"
    )


class EventsBody(Body):
    """A batch: stored as a whole, or not at all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"events": [{"event_id": "e-1", "user_id": "42", "item_id": "50", "timestamp": 1700000000}]}]
        }
    )

    events: list[EventBody] = Field(min_length=1, description="oldest first")

    def taken(self, limits: ServeConfig) -> list[Event]:
        """The same for a Service.

        Raises:
            BadInput: with every event of a time to come, and when they are too many.
        """
        check(limits, events=len(self.events))
        now = int(time.time())
        ahead = [
            f"events.{place}.timestamp: {event.timestamp} is in the future (now is {now}); send Unix seconds"
            for place, event in enumerate(self.events)
            if event.timestamp is not None and event.timestamp > now + limits.future_s
        ]
        if ahead:
            raise BadInput.of(ahead[:20], "events")
        return [
            Event(one.event_id, one.user_id, one.item_id, now if one.timestamp is None else one.timestamp)
            for one in self.events
        ]


class ItemBody(RootModel[dict[str, Text | int | float | bool | None]]):
    """Values by column, as the catalog's file has them; columns that are left out stay as they are, or empty."""

    model_config = ConfigDict(
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"title": "A quiet film about the sea", "genres": "drama"}]},
    )


def events_of(content: Any) -> EventsBody:
    """One event, or a batch of them, from plain JSON.

    Raises:
        ValidationError: when it is neither.
    """
    if isinstance(content, dict) and "events" not in content:
        return EventsBody(events=[EventBody.model_validate(content)])
    return EventsBody.model_validate(content)


def check(limits: ServeConfig, **found: int) -> None:
    """Compares numbers with the limits of the same names.

    Raises:
        BadInput: with every one that is larger.
    """
    most = {
        "limit": limits.max_limit,
        "history": limits.max_history,
        "exclude_items": limits.max_history,
        "depth": limits.max_depth,
        "documents": limits.max_documents,
        "events": limits.max_events,
    }
    faults = [
        f"{name} is {number:,}, at most {most[name]:,} are allowed"
        for name, number in found.items()
        if number > most[name]
    ]
    if faults:
        raise BadInput.of(faults, "the request")
