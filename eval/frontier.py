"""Quality against cost: what each setting of the second stage gains, and what it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eval.agreement import Agreement
from eval.significance import PairedTest


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to rerank.

    Attributes:
        model: name of the reranker in this report.
        precision: type of its products.
        depth: candidates of a user that are read.
        share: of users who are reranked, those whom the gate expects to gain most.
    """

    model: str
    precision: str
    depth: int
    share: float

    @property
    def words(self) -> str:
        """For people."""
        gate = "" if self.share >= 1 else f", {self.share:.0%} of users"
        return f"{self.model}, {self.precision}, {self.depth} deep{gate}"


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What a setting gains and takes, over the same users for every point.

    Attributes:
        ndcg10: mean over all users.
        test: against retrieval alone.
        tokens: through the model, mean over all users, those who are not reranked among them.
        p50_ms, p95_ms: of one request at a time, both stages, for a user who is reranked.
        mean_ms: of both stages, over all users.
        memory_mb: of the model's weights.
        cost_of_1000: recommendations, at the prices of the config.
        agreement: of the scores with those in float32; None where these are not known.
    """

    setting: Setting
    ndcg10: float
    test: PairedTest
    tokens: float
    p50_ms: float
    p95_ms: float
    mean_ms: float
    memory_mb: float
    cost_of_1000: float
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class WholeCatalog:
    """The reranker over every item, for comparison with what two stages cost.

    Attributes:
        model: its name.
        tokens: for one user, mean.
        ms: for one user, mean, where it was measured.
        users: on how many it was measured; 0: the tokens were counted and nothing was read.
        ndcg10: of these users, None where nothing was read.
        two_stage_ndcg10: of the same users, by both stages at the deepest setting in float32.
        test: these two stages against the whole catalog, user by user; None where nothing was read.
    """

    model: str
    tokens: float
    ms: float | None
    users: int
    ndcg10: float | None
    two_stage_ndcg10: float | None
    test: PairedTest | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """All settings that were tried.

    Attributes:
        users: who were asked.
        retrieval_ndcg10: without a second stage.
        retrieval_ms: p50 of one request at a time.
        ceiling: depth → NDCG@10 of an order of that many candidates that knows the answers.
        points: in the order they were tried.
        whole_catalog: one for each model.
        training_minutes: model → minutes of its training.
        training_cost: model → the same at the prices of the config.
    """

    users: int
    retrieval_ndcg10: float
    retrieval_ms: float
    ceiling: Mapping[int, float]
    points: Sequence[FrontierPoint]
    whole_catalog: Sequence[WholeCatalog] = ()
    training_minutes: Mapping[str, float] = field(default_factory=dict)
    training_cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def front(self) -> list[FrontierPoint]:
        """The points that no other beats, cheapest first: less time costs quality.

        Retrieval alone is the first of them, unseen: a point that is not better than it is never on the front.
        """
        front: list[FrontierPoint] = []
        best = self.retrieval_ndcg10
        for point in sorted(self.points, key=lambda point: (point.mean_ms, -point.ndcg10)):
            if point.ndcg10 > best:
                front.append(point)
                best = point.ndcg10
        return front

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        front = {point.setting for point in self.front}
        points = [{**asdict(point), "on_front": point.setting in front} for point in self.points]
        return {**asdict(self), "ceiling": {str(k): v for k, v in self.ceiling.items()}, "points": points}
