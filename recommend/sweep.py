"""Which settings of the second stage a frontier tries."""

from pydantic import BaseModel, ConfigDict, Field

from rerank.precision import Precision


class SweepConfig(BaseModel):
    """The sweep of `evaluate --frontier`, over every reranker that the run has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depths: tuple[int, ...] = Field((5, 10, 20, 50), min_length=1, description="candidates of a user that are read")
    shares: tuple[float, ...] = Field((1.0, 0.5, 0.25), min_length=1, description="of users who are reranked")
    precisions: tuple[Precision, ...] = Field(
        (Precision.FLOAT32, Precision.BFLOAT16, Precision.INT8), min_length=1, description="of the matrix products"
    )
    timed_users: int = Field(30, ge=1, description="users that are asked one by one for the milliseconds")
    catalog_users: int = Field(20, ge=0, description="users for whom the whole catalog is read, for comparison")
    catalog_tokens: int = Field(
        2_000_000, ge=0, description="most tokens to spend on that; with more to read they are only counted"
    )
