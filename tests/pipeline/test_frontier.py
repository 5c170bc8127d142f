"""Points of the frontier, worked out again one user at a time, and what the sweep leaves out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from config import with_overrides
from data.schema import Candidates, Histories
from eval.agreement import Agreement
from eval.frontier import Frontier, FrontierPoint
from fusion.linear import LinearFusion
from pipeline.evaluate import Part, evaluation_recommender
from pipeline.frontier import Asked, _Bench, measure_frontier, weights_mb
from pipeline.run_log import RunLog
from pipeline.train_reranker import RECORD
from pipeline.workspace import FitKind, Workspace, open_workspace
from recommend.recommender import Recommender
from recommend.sweep import SweepConfig
from rerank.card import HEAD_FILE
from rerank.fit import request_of, with_reranker_scores
from rerank.fusion import RERANKER, RETRIEVAL, TRANSFORMS
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from store.artifacts import MANIFEST
from store.errors import MissingStep
from tests.pipeline.shop import quiet

SWEEP = SweepConfig(
    depths=(3, 8), shares=(1.0, 0.5), precisions=(Precision.FLOAT32, Precision.BFLOAT16), timed_users=3, catalog_users=4
)


@pytest.fixture(scope="module")
def ws(shop, tmp_path_factory) -> Workspace:
    found = open_workspace(shop.copy(tmp_path_factory.mktemp("frontier")))
    return replace(found, config=found.config.model_copy(update={"sweep": SWEEP}))


@pytest.fixture(scope="module")
def recommender(ws) -> Recommender:
    return evaluation_recommender(ws, Part.TEST, with_reranker=True, log=quiet(ws))


@pytest.fixture(scope="module")
def made(ws, recommender) -> Frontier:
    return measure_frontier(ws, recommender, ws.split.test, log=quiet(ws))


def at(found: Frontier, depth: int, share: float = 1.0, precision: str = "float32") -> FrontierPoint:
    (point,) = [
        one
        for one in found.points
        if (one.setting.depth, one.setting.share, one.setting.precision) == (depth, share, precision)
    ]
    return point


def ndcg(rows: list[int], target: int) -> float:
    return 1 / np.log2(rows.index(target) + 2) if target in rows[:10] else 0.0


def reranker_of(recommender: Recommender) -> PackedReranker:
    assert recommender.second is not None
    return recommender.second.reranker  # type: ignore[return-value]


def test_every_setting_is_tried(made: Frontier) -> None:
    assert len(made.points) == 2 * 2 * 2
    assert made.users == 120
    assert list(made.ceiling) == [3, 8]
    assert made.retrieval_ndcg10 <= made.ceiling[3] <= made.ceiling[8]
    assert all(point.p95_ms >= point.p50_ms > made.retrieval_ms > 0 for point in made.points)
    assert min(made.training_minutes.values()) > 0


@pytest.mark.parametrize("depth", [3, 8])
def test_a_point_is_what_loops_find(ws, recommender, made, depth) -> None:
    texts, asked, users = ws.dataset.catalog.texts, ws.split.test, ws.selectors
    learnt = recommender.retrieve(users.histories, 8).head(depth)
    reranker = reranker_of(recommender)
    fusion = LinearFusion.fit(with_reranker_scores(reranker, texts, learnt, users.histories), users.targets, TRANSFORMS)
    found = recommender.retrieve(asked.histories, 8)
    gains, without, tokens = [], [], []
    for user in range(len(asked)):
        rows = found.item_rows[user].tolist()
        result = reranker.score([request_of(texts, found.head(depth), asked.histories, user)])
        fused = fusion.weights[RETRIEVAL] * found.score[user, :depth] + fusion.weights[RERANKER] * result.scores[0]
        order = [rows[place] for place in np.argsort(-fused, kind="stable")] + rows[depth:]
        target = int(asked.targets[user][0])
        gains.append(ndcg(order, target))
        without.append(ndcg(rows, target))
        tokens.append(result.prompt_tokens[0])
    point = at(made, depth)
    assert point.ndcg10 == pytest.approx(np.mean(gains), abs=1e-6)
    assert point.test.theirs == pytest.approx(np.mean(without), abs=1e-6)
    assert made.retrieval_ndcg10 == pytest.approx(np.mean(without), abs=1e-6)
    assert point.tokens == pytest.approx(np.mean(tokens))


def test_who_is_not_reranked_costs_no_tokens_and_stays_in_retrieval_order(made: Frontier) -> None:
    whole, half = at(made, 8), at(made, 8, 0.5)
    assert 0.2 * whole.tokens < half.tokens < 0.8 * whole.tokens
    assert half.mean_ms < whole.mean_ms
    changed = half.test.better + half.test.worse
    assert changed <= whole.test.better + whole.test.worse


def test_less_precision_moves_the_scores_a_little(made: Frontier) -> None:
    assert at(made, 8, precision="bfloat16").ndcg10 == pytest.approx(at(made, 8).ndcg10, abs=0.03)


def test_less_precision_agrees_with_float32_as_loops_find(ws, recommender, made) -> None:
    exact = at(made, 8).agreement
    assert exact == Agreement(0.0, 1.0)
    found = recommender.retrieve(ws.split.test.histories, 8)
    rerankers = [at_precision(reranker_of(recommender), one) for one in (Precision.FLOAT32, Precision.BFLOAT16)]
    taus, most = [], 0.0
    for user in range(len(found)):
        request = request_of(ws.dataset.catalog.texts, found, ws.split.test.histories, user)
        full, less = (reranker.score([request]).scores[0] for reranker in rerankers)
        taus.append(kendalltau(full, less).statistic)
        most = max(most, float(np.abs(full - less).max()))
    agreement = at(made, 8, precision="bfloat16").agreement
    assert agreement is not None
    assert agreement.kendall_tau == pytest.approx(np.mean(taus), abs=0.02)
    assert agreement.largest_difference == pytest.approx(most, rel=0.2)
    assert agreement.largest_difference > 0
    assert at(made, 3, precision="bfloat16").agreement.largest_difference <= agreement.largest_difference


def test_without_float32_no_agreement_is_told(ws, recommender) -> None:
    sweep = SWEEP.model_copy(update={"precisions": (Precision.BFLOAT16,), "depths": (3,)})
    few = replace(ws, config=ws.config.model_copy(update={"sweep": sweep}))
    found = measure_frontier(few, recommender, ws.split.test.take(np.arange(10)), log=quiet(few))
    assert [point.agreement for point in found.points] == [None, None]


def test_training_is_told_in_minutes_and_money(ws, recommender) -> None:
    priced = with_overrides(ws.config, ["recommend.prices.per_machine_hour=3", "recommend.prices.per_million_tokens=2"])
    few = replace(ws, config=priced)
    found = measure_frontier(few, recommender, ws.split.test.take(np.arange(4)), log=quiet(few))
    ((_, minutes),), ((_, cost),) = found.training_minutes.items(), found.training_cost.items()
    record = ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION)) / RECORD
    tokens = sum(one["tokens"] for one in json.loads(record.read_text())["rounds"])
    assert tokens > 0
    assert cost == pytest.approx(minutes / 60 * 3 + tokens / 1e6 * 2)


def test_on_validation_nobody_is_judged_by_weights_that_saw_them(ws, recommender) -> None:
    asked = Asked(ws.selectors, recommender.retrieve(ws.selectors.histories, 8))
    bench = _Bench(ws, "x", reranker_of(recommender), Precision.FLOAT32, asked, None, 1.0)
    fits = list(bench._fits(8))
    judged = np.concatenate([places for _, _, places in fits])
    assert sorted(judged.tolist()) == list(range(len(asked)))
    for fusion, _, places in fits:
        others = bench.asked.take(np.setdiff1d(np.arange(len(asked)), places))
        again = LinearFusion.fit(others.candidates.head(8), others.holdout.targets, TRANSFORMS)
        assert fusion.weights == again.weights


def test_the_whole_catalog_is_read_for_a_few_and_only_counted_where_it_is_too_much(ws, recommender, made) -> None:
    (read,) = made.whole_catalog
    assert read.users == 4
    assert read.ms is not None
    assert read.test is not None
    assert (read.test.users, read.test.ours, read.test.theirs) == (4, read.two_stage_ndcg10, read.ndcg10)
    few = replace(ws, config=ws.config.model_copy(update={"sweep": SWEEP.model_copy(update={"catalog_tokens": 10})}))
    asked = Asked(ws.split.test, recommender.retrieve(ws.split.test.histories, 8))
    bench = _Bench(few, "x", reranker_of(recommender), Precision.FLOAT32, asked, asked, 1.0)
    counted = bench.whole_catalog(recommender)
    assert (counted.users, counted.ms, counted.ndcg10) == (0, None, None)
    history = Histories.of([asked.holdout.histories[0].tolist()])
    everything = Candidates(np.arange(60)[None], np.zeros((1, 60), dtype=np.float32))
    prompt = bench.reranker.prompt_of(request_of(ws.dataset.catalog.texts, everything, history, 0))
    assert bench._whole_tokens(asked, 0) == prompt.tokens


def test_weights_of_eight_bits_are_counted_as_such(recommender) -> None:
    full = reranker_of(recommender)
    small = at_precision(full, Precision.INT8)
    assert weights_mb(small.backbone) < weights_mb(full.backbone)


def test_a_run_without_a_reranker_is_told_how_to_make_one(ws, recommender, tmp_path) -> None:
    from shutil import rmtree

    bare = open_workspace(_copied(ws, tmp_path))
    rmtree(bare.run.root / "artifacts" / "reranker")
    with pytest.raises(MissingStep, match="train-reranker"):
        measure_frontier(bare, recommender, bare.split.test, log=quiet(bare))


def test_a_damaged_reranker_is_left_out_and_told(ws, recommender, tmp_path, capsys) -> None:
    from shutil import copytree

    copied = replace(open_workspace(_copied(ws, tmp_path)), config=ws.config)
    (own,) = (copied.run.root / "artifacts" / "reranker").glob("[!.]*")
    damaged, nameless = own.with_name("0" * 16), own.with_name("1" * 16)
    for folder in (damaged, nameless):
        copytree(own, folder)
    (damaged / HEAD_FILE).write_bytes(b"no weights")
    (nameless / MANIFEST).write_text("{")
    found = measure_frontier(copied, recommender, copied.split.test.take(np.arange(8)), log=RunLog(copied.run, "test"))
    assert len(found.points) == 2 * 2 * 2
    told = [line for line in capsys.readouterr().err.splitlines() if "is left out" in line]
    assert len(told) == 2
    for folder in (own, damaged):
        (folder / HEAD_FILE).write_bytes(b"no weights")
    with pytest.raises(MissingStep, match=r"no reranker .* can be read"):
        measure_frontier(copied, recommender, copied.split.test, log=quiet(copied))


def _copied(ws: Workspace, tmp_path):
    from shutil import copytree

    return copytree(ws.run.root, tmp_path / "bare")
