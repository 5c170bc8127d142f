"""Measures what every setting of the second stage gains and takes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.schema import NO_ITEM, Candidates, Histories, Holdout, Rows, Scores
from eval.agreement import Agreement
from eval.folds import folds
from eval.frontier import Frontier, FrontierPoint, Setting, WholeCatalog
from eval.metrics import PerUser, ndcg10, relevance_of
from eval.significance import paired_bootstrap
from fusion.head import above_the_rest
from fusion.linear import LinearFusion
from pipeline.run_log import RunLog
from pipeline.train_reranker import RECORD
from pipeline.workspace import FitKind, Workspace
from recommend.ledger import Spent
from recommend.recommender import Recommender
from recommend.release import load_reranker
from rerank.fit import request_of, with_reranker_scores
from rerank.fusion import RERANKER, TRANSFORMS, crossed_gains
from rerank.gate import Gate
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from store.errors import BadInput, CorruptArtifact, Mismatch, MissingStep

MILLION = 1_000_000
UNUSABLE = (CorruptArtifact, Mismatch, MissingStep)
"""Faults of one reranker, for which the others need not be left unmeasured."""


@dataclass(frozen=True)
class Asked:
    """Users with their candidates in retrieval order.

    Attributes:
        candidates: as deep as the deepest setting.
    """

    holdout: Holdout
    candidates: Candidates

    def take(self, places: Rows) -> "Asked":
        """Some of them."""
        return Asked(self.holdout.take(places), self.candidates.take(places))

    def __len__(self) -> int:
        return len(self.holdout)


def measure_frontier(ws: Workspace, recommender: Recommender, holdout: Holdout, *, log: RunLog) -> Frontier:
    """Every reranker of the run behind the evaluation fit's retriever, at every setting of the config's sweep.

    Weights of the fusion and the gate are fitted anew for every model, precision and depth: on group B where the test
    is asked; on four fifths of it, for the users of the last, where group B itself is. So a model to which the config's
    own fit gave no weight shows what it would do with one.

    A reranker that is damaged, or whose base model is another one now, is left out with a line that says so.

    Raises:
        MissingStep: when the run has no reranker that can be read.
    """
    sweep = ws.config.sweep
    models = _models(ws, log=log)
    deepest = min(max(sweep.depths), len(ws.dataset.catalog))
    asked = Asked(holdout, recommender.retrieve(holdout.histories, deepest))
    selectors = ws.selectors.take(np.arange(min(len(ws.selectors), ws.config.reranker.fusion_users)))
    fitting = None
    if holdout.part != selectors.part:
        fitting = Asked(selectors, recommender.retrieve(selectors.histories, deepest))
    without = ndcg10(asked.candidates, holdout.targets)
    retrieval_ms = _retrieval_ms(recommender, asked, sweep.timed_users)
    points: list[FrontierPoint] = []
    whole: list[WholeCatalog] = []
    trained: dict[str, Spent] = {}
    for name, key in models.items():
        try:
            reranker, trained[name] = load_reranker(ws.run, key)[0], _training(ws, key)
        except UNUSABLE as error:
            log.say(f"frontier: {name} is left out: {error}")
            continue
        exact: Candidates | None = None
        # Float32 first, which the others are compared with.
        for precision in sorted(sweep.precisions, key=lambda one: one is not Precision.FLOAT32):
            log.say(f"frontier: {name}, {precision}, {len(asked):,} users, {deepest} deep")
            try:
                precise = at_precision(reranker, precision)
            except BadInput as error:
                log.say(f"frontier: {name} in {precision} is left out: {error}")
                continue
            bench = _Bench(ws, name, precise, precision, asked, fitting, retrieval_ms)
            if precision is Precision.FLOAT32:
                exact = bench.asked.candidates
            points += bench.points(without, exact)
            if precision is Precision.FLOAT32:
                whole.append(bench.whole_catalog(recommender))
    if not trained:
        raise MissingStep(f"no reranker of {ws.run.root} can be read: make one with {ws.command('train-reranker')}")
    prices = ws.config.recommend.prices
    depths = sorted({min(depth, deepest) for depth in sweep.depths})
    return Frontier(
        users=len(asked),
        retrieval_ndcg10=float(without.mean()),
        retrieval_ms=retrieval_ms,
        ceiling={depth: _oracle(asked, depth) for depth in depths},
        points=points,
        whole_catalog=whole,
        training_minutes={name: spent.training_minutes for name, spent in trained.items()},
        training_cost={name: spent.training_cost(prices) for name, spent in trained.items()},
    )


class _Bench:
    """One reranker at one precision, on the users who are asked."""

    def __init__(
        self,
        ws: Workspace,
        name: str,
        reranker: PackedReranker[Any],
        precision: Precision,
        asked: Asked,
        fitting: Asked | None,
        retrieval_ms: float,
    ) -> None:
        self.ws, self.name, self.reranker, self.precision = ws, name, reranker, precision
        self.retrieval_ms = retrieval_ms
        self.texts = ws.dataset.catalog.texts
        self.asked = self._scored(asked)
        self.fitting = None if fitting is None else self._scored(fitting)
        self.prefix, self.reading = self._tokens(asked)  # (B,), (B, K) tokens of the first k candidates

    def points(self, without: PerUser, exact: Candidates | None) -> Iterator[FrontierPoint]:
        """At every depth and share of the sweep; `exact`: the same candidates scored in float32."""
        sweep, prices = self.ws.config.sweep, self.ws.config.recommend.prices
        megabytes = weights_mb(self.reranker.backbone)
        for depth in sorted({min(depth, self.asked.candidates.depth) for depth in sweep.depths}):
            milliseconds, agreement = self._milliseconds(depth), self._agreement(exact, depth)
            fits = list(self._fits(depth))
            for share in sweep.shares:
                gains, opened = np.zeros(len(self.asked)), np.zeros(len(self.asked), dtype=np.bool_)
                for fusion, gate, places in fits:
                    part = self.asked.take(places)
                    opened[places] = gate.opens(
                        part.candidates.head(depth), part.holdout.histories.lengths, share=share
                    )
                    gains[places] = ndcg10(
                        reordered(part.candidates, fusion, depth=depth, opened=opened[places]), part.holdout.targets
                    )
                tokens = np.where(opened, self.prefix + self.reading[:, depth - 1], 0)
                mean_ms = self.retrieval_ms + float(opened.mean()) * float(milliseconds.mean())
                spent = Spent(requests=len(opened), prompt_tokens=int(tokens.sum()), rerank_ms=mean_ms * len(opened))
                yield FrontierPoint(
                    setting=Setting(self.name, str(self.precision), depth, share),
                    ndcg10=float(gains.mean()),
                    test=paired_bootstrap(gains, without),
                    tokens=float(tokens.mean()),
                    p50_ms=self.retrieval_ms + float(np.percentile(milliseconds, 50)),
                    p95_ms=self.retrieval_ms + float(np.percentile(milliseconds, 95)),
                    mean_ms=mean_ms,
                    memory_mb=megabytes,
                    cost_of_1000=spent.cost_of_1000(prices),
                    agreement=agreement,
                )

    def whole_catalog(self, recommender: Recommender) -> WholeCatalog:
        """The first few users with every item that they do not know."""
        sweep, items = self.ws.config.sweep, np.arange(len(self.texts))
        users = min(sweep.catalog_users, len(self.asked))
        part = self.asked.take(np.arange(users))
        tokens = [self._whole_tokens(part, place) for place in range(users)]
        if not users or sum(tokens) > sweep.catalog_tokens:
            return WholeCatalog(self.name, float(np.mean(tokens)) if users else 0.0, None, 0, None, None)
        histories = part.holdout.histories
        rows = np.tile(items, (users, 1))
        if part.holdout.exclude_known:
            rows = _without_known(rows, histories)
        everything = recommender.retriever.scored(rows, histories)
        started = time.perf_counter()
        scored = with_reranker_scores(self.reranker, self.texts, everything, histories)
        ms = (time.perf_counter() - started) * 1000 / users
        depth = self.asked.candidates.depth
        gains, two_stage = np.zeros(users), np.zeros(users)
        for fusion, _, places in self._fits(depth):
            mine = places[places < users]
            if not len(mine):
                continue
            targets, opened = part.holdout.targets.take(mine), np.ones(len(mine), dtype=np.bool_)
            gains[mine] = ndcg10(reordered(scored.take(mine), fusion, depth=scored.depth, opened=opened), targets)
            few = part.candidates.take(mine)
            two_stage[mine] = ndcg10(reordered(few, fusion, depth=depth, opened=opened), targets)
        test = paired_bootstrap(two_stage, gains)
        return WholeCatalog(self.name, float(np.mean(tokens)), ms, users, test.theirs, test.ours, test)

    def _scored(self, asked: Asked) -> Asked:
        found = with_reranker_scores(self.reranker, self.texts, asked.candidates, asked.holdout.histories)
        return replace(asked, candidates=found)

    def _agreement(self, exact: Candidates | None, depth: int) -> Agreement | None:
        """Of the first `depth` scores."""
        if exact is None:
            return None
        ours, theirs = self.asked.candidates.head(depth), exact.head(depth)
        return Agreement.of(ours.sources[RERANKER], theirs.sources[RERANKER], ours.present)

    def _fits(self, depth: int) -> Iterator[tuple[LinearFusion, Gate, Rows]]:
        """Fusion and gate, and the places of those asked whom they were fitted without."""
        if self.fitting is not None:
            yield *self._fit(self.fitting, depth), np.arange(len(self.asked))
            return
        for inside, outside in folds(len(self.asked)):
            yield *self._fit(self.asked.take(inside), depth), outside

    def _fit(self, users: Asked, depth: int) -> tuple[LinearFusion, Gate]:
        head, targets = users.candidates.head(depth), users.holdout.targets
        gains = crossed_gains(head, targets)
        return LinearFusion.fit(head, targets, TRANSFORMS), Gate.fit(head, users.holdout.histories.lengths, gains)

    def _tokens(self, asked: Asked) -> tuple[Rows, Rows]:
        prefix, reading = (
            np.zeros(len(asked), dtype=np.int64),
            np.zeros(asked.candidates.item_rows.shape, dtype=np.int64),
        )
        for place in range(len(asked)):
            prompt = self.reranker.prompt_of(request_of(self.texts, asked.candidates, asked.holdout.histories, place))
            prefix[place] = len(prompt.prefix)
            reading[place, asked.candidates.present[place]] = [len(one) for one in prompt.candidates]
        return prefix, reading.cumsum(axis=1)

    def _milliseconds(self, depth: int) -> Scores:
        """(n,) of the second stage, one user at a time, nothing remembered."""
        count = min(self.ws.config.sweep.timed_users, len(self.asked))
        took = []
        for place in [0, *range(count)]:
            request = request_of(self.texts, self.asked.candidates.head(depth), self.asked.holdout.histories, place)
            self.reranker.forget()
            started = time.perf_counter()
            self.reranker.score([request])
            took.append((time.perf_counter() - started) * 1000)
        return np.array(took[1:], dtype=np.float32)

    def _whole_tokens(self, part: Asked, place: int) -> int:
        """Of one user's history and every text of the catalog, as they would be read; the history once."""
        history = self.reranker.prompt_of(
            request_of(self.texts, part.candidates.head(0), part.holdout.histories, place)
        )
        return len(history.prefix) + self._catalog_tokens

    @property
    def _catalog_tokens(self) -> int:
        prompter = self.reranker.prompter
        sample = self.texts[:: max(1, len(self.texts) // 2000)]
        prompt = prompter.prompt([], prompter.tokenize(sample))
        return round(sum(map(len, prompt.candidates)) * len(self.texts) / len(sample))


def reordered(scored: Candidates, fusion: LinearFusion, *, depth: int, opened: np.ndarray) -> Candidates:
    """The first `depth` places by the fusion where `opened` (B,), the rest below them as they stood."""
    read = scored.present & (np.arange(scored.depth) < depth) & opened[:, None]
    return scored.ranked_by(above_the_rest(fusion.score(scored), scored.score, read))


def weights_mb(model: Any) -> float:
    """Megabytes of a model's weights, of whatever type they are."""

    def size(value: Any) -> int:
        if isinstance(value, tuple):
            return sum(map(size, value))
        return int(value.numel() * value.element_size()) if hasattr(value, "element_size") else 0

    return sum(map(size, model.state_dict().values())) / MILLION


def _models(ws: Workspace, *, log: RunLog) -> dict[str, str]:
    """Name in the report → key, of every reranker of the evaluation fit; the config's own comes first.

    Raises:
        MissingStep: when there is none.
    """
    retriever, own = ws.retriever_key(FitKind.EVALUATION), ws.reranker_key(FitKind.EVALUATION)
    folders = sorted((ws.run.root / "artifacts" / "reranker").glob("[!.]*"))
    found: dict[str, str] = {}
    for key in sorted((folder.name for folder in folders), key=lambda key: (key != own, key)):
        try:
            made_from = ws.run.manifest("reranker", key)["made_from"]
        except UNUSABLE as error:
            log.say(f"frontier: reranker {key} is left out: {error}")
            continue
        if made_from["retriever"] != retriever or made_from["fit"] != FitKind.EVALUATION.value:
            continue
        name = _name(made_from["config"])
        found[name if name not in found else f"{name} {key[:4]}"] = key
    if not found:
        raise MissingStep(
            f"{ws.run.root} has no reranker behind its retriever: make one with {ws.command('train-reranker')}"
        )
    return found


def _name(config: dict[str, Any]) -> str:
    """The model, and what was done to it."""
    model = str(config["model"]).rstrip("/").rsplit("/", 1)[-1]
    kept = sorted({part["layers"] for part in (config["encoder"], config["decoder"]) if part.get("layers")})
    done = [*(f"{count} layers" for count in kept), *(["distilled"] if config.get("teacher") else [])]
    return f"{model} ({', '.join(done)})" if done else model


def _training(ws: Workspace, key: str) -> Spent:
    rounds = json.loads((ws.run.artifact("reranker", key) / RECORD).read_text(encoding="utf-8"))["rounds"]
    # Rerankers of earlier versions have not counted their tokens.
    tokens = sum(one.get("tokens", 0) for one in rounds)
    return Spent(trainings=1, training_tokens=tokens, training_minutes=float(sum(one["minutes"] for one in rounds)))


def _retrieval_ms(recommender: Recommender, asked: Asked, users: int) -> float:
    """p50 of one user at a time; the first does not count."""
    took: list[float] = []
    for place in [0, *range(min(users, len(asked)))]:
        started = time.perf_counter()
        recommender.retrieve(asked.holdout.histories.take(np.array([place])), recommender.config.candidates)
        took.append((time.perf_counter() - started) * 1000)
    return float(np.median(took[1:]))


def _oracle(asked: Asked, depth: int) -> float:
    """NDCG@10 with the targets among the first `depth` on top."""
    head = asked.candidates.head(depth)
    relevance = relevance_of(head, asked.holdout.targets)
    order = head.ranked_by(relevance.astype(np.float32))
    return float(ndcg10(order, asked.holdout.targets).mean())


def _without_known(rows: Rows, histories: Histories) -> Rows:
    """(B, K) the same rows with NO_ITEM in the place of each that the user knows."""
    known = [np.isin(rows[place], histories[place]) for place in range(len(rows))]
    return np.where(known, NO_ITEM, rows)
