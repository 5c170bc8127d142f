"""What a server accepts, and how long it takes for it."""

import os

from pydantic import BaseModel, ConfigDict, Field

from recommend.overload import OverloadConfig


class ServeConfig(BaseModel):
    """Limits of the HTTP service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_kb: int = Field(512, ge=1, description="kilobytes of a request's body")
    max_history: int = Field(1000, ge=1, description="items of a history, and of a list to be excluded")
    max_limit: int = Field(200, ge=1, description="items of an answer")
    max_depth: int = Field(200, ge=0, description="candidates that a request may have reranked")
    max_documents: int = Field(500, ge=1, description="documents of a call of /v1/rerank")
    max_events: int = Field(1000, ge=1, description="events of one batch")
    future_s: int = Field(300, ge=0, description="how far ahead of this machine's clock an event's time may be")
    concurrency: int = Field(16, ge=1, description="requests that are worked on at once, in as many threads")
    threads: int | None = Field(
        None,
        ge=1,
        description="in which one request is computed; unset: half of the processors, the others are for further "
        "requests and the reranker",
    )
    queue: int = Field(64, ge=0, description="requests that wait for one of these; more are refused with 429")
    time_limit_ms: int = Field(
        2000,
        ge=1,
        description="longest wait for a thread, and for the reranker; a request is given up after five times that",
    )
    drain_s: int = Field(20, ge=0, description="how long requests under way may take to end after SIGTERM")
    log_content: bool = Field(False, description="item ids of answers in the log; user ids stay hashed")
    overload: OverloadConfig = Field(OverloadConfig(), description="how reranking gives way under load")

    @property
    def threads_of_a_request(self) -> int:
        """In which one request is computed."""
        return self.threads or max(1, (os.cpu_count() or 1) // 2)
