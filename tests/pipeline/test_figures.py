"""Figures and exported files agree with each other, and with arithmetic done on the side."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data.split import group_of_users
from pipeline.evaluate import EvaluationOptions, Part, evaluate_run
from pipeline.export import Asked
from pipeline.summary import summary
from pipeline.workspace import open_workspace
from recommend.recommender import Rerank
from tests.pipeline.oracle import by_user, exported, histories_by_id, metrics, ndcg10
from tests.pipeline.shop import ITEMS, quiet, train, weigh_reranker

PLAIN = EvaluationOptions(baselines=False)


# --- export


@pytest.mark.parametrize("asked", Asked)
def test_exactly_k_rows_a_user_ranked_and_none_of_them_known(weighed, tmp_path, asked):
    frame = exported(weighed, asked, tmp_path, k=13)
    assert frame.schema == {"user_id": pl.String, "item_id": pl.String, "rank": pl.Int32, "score": pl.Float32}
    found = by_user(frame)
    cut = {Asked.NEXT: 0, Asked.TEST: 1, Asked.VALIDATION: 2}[asked]
    known = {user: items[: len(items) - cut] for user, items in histories_by_id().items()}
    assert set(found) == {user for user, items in known.items() if items}
    for user, items in found.items():
        assert len(items) == len(set(items)) == 13
        assert not set(items) & set(known[user])
    ranks = frame.group_by("user_id", maintain_order=True).agg("rank", "score")
    assert all(list(rank) == list(range(1, 14)) for rank in ranks["rank"])
    assert all((np.diff(np.asarray(score)) <= 0).all() for score in ranks["score"])


def test_where_k_do_not_exist_all_that_do_come_back(shop, tmp_path):
    frame = exported(open_workspace(shop.run), Asked.NEXT, tmp_path, k=ITEMS)
    known = histories_by_id()
    assert all(len(items) == ITEMS - len(known[user]) for user, items in by_user(frame).items())


def test_users_are_drawn_by_hash_the_same_ones_each_time(weighed, tmp_path):
    everybody = exported(weighed, Asked.TEST, tmp_path)
    few = exported(weighed, Asked.TEST, tmp_path, users=20)
    assert few["user_id"].n_unique() == 20
    # A transformer's last digit depends on who else is in the batch.
    among_all = everybody.filter(pl.col("user_id").is_in(few["user_id"].unique().implode()))
    assert_frame_equal(few, among_all, abs_tol=1e-4)
    assert set(exported(weighed, Asked.TEST, tmp_path, users=10)["user_id"]) < set(few["user_id"])


def test_depth_and_rerank_reach_the_export(weighed, tmp_path):
    both = by_user(exported(weighed, Asked.TEST, tmp_path))
    retrieval = by_user(exported(weighed, Asked.TEST, tmp_path, rerank=Rerank.NEVER))
    assert by_user(exported(weighed, Asked.TEST, tmp_path, depth=0)) == retrieval
    assert both != retrieval
    for user, items in both.items():
        assert set(items[:8]) == set(retrieval[user][:8])
        assert items[8:] == retrieval[user][8:]


def test_towers_only_is_the_search_and_what_the_report_calls_towers_alone(weighed, tmp_path):
    found = by_user(exported(weighed, Asked.TEST, tmp_path, k=ITEMS, towers_only=True))
    report, _ = evaluate_run(weighed, EvaluationOptions(part=Part.TEST, baselines=False), log=quiet(weighed))
    gains = [ndcg10(items, histories_by_id()[user][-1]) for user, items in found.items()]
    assert metrics(weighed, "test")["towers alone"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-9)
    assert found != by_user(exported(weighed, Asked.TEST, tmp_path, k=ITEMS, rerank=Rerank.NEVER))
    alone = {entry.source: entry.alone for entry in report.contributions}
    assert alone["towers"] == pytest.approx(metrics(weighed, "test")["towers alone"]["ndcg@10"])
    retrieval = metrics(weighed, "test")["retrieval only"]["ndcg@10"]
    assert all(entry.test.ours == pytest.approx(retrieval) for entry in report.contributions)


# --- evaluate


@pytest.mark.parametrize("part", Part)
def test_the_reports_figures_are_those_of_the_exported_file(weighed, tmp_path, part):
    """NDCG and recall written out again, from the Parquet of `recommend --all` and the rows of the log alone."""
    evaluate_run(weighed, EvaluationOptions(part=part, baselines=False), log=quiet(weighed))
    reported = metrics(weighed, part)
    users = list(histories_by_id())
    group_b = {user for user, b in zip(users, group_of_users(weighed.dataset.users), strict=True) if b}
    place = {Part.TEST: -1, Part.VALIDATION: -2}[part]
    target = {user: items[place] for user, items in histories_by_id().items() if len(items) + place > 0}
    for system, rerank in (("tandem", Rerank.AUTO), ("retrieval only", Rerank.NEVER)):
        found = by_user(exported(weighed, Asked(part.value), tmp_path, k=ITEMS, rerank=rerank))
        asked = [user for user in found if part is Part.TEST or user in group_b]
        gains = [ndcg10(found[user], target[user]) for user in asked]
        assert reported[system]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-9)
        for k in (1, 10, 20):
            hits = [target[user] in found[user][:k] for user in asked]
            assert reported[system][f"recall@{k}"] == pytest.approx(np.mean(hits), abs=1e-9)
    per_user = pl.read_parquet(weighed.run.reports_dir / part / "per_user.parquet")
    assert set(per_user["user_id"]) == set(asked)


def test_a_shallow_union_is_judged_as_it_is_served(shop, tmp_path):
    """Each source brings five items only: a deeper look in the evaluation would flatter what is served."""
    ws = train(tmp_path / "run", shop.log, shop, "retriever.per_source=5", "recommend.candidates=5")
    evaluate_run(ws, EvaluationOptions(part=Part.TEST, baselines=False), log=quiet(ws))
    target = {user: items[-1] for user, items in histories_by_id().items()}
    found = by_user(exported(ws, Asked.TEST, tmp_path, k=ITEMS, rerank=Rerank.NEVER))
    gains = [ndcg10(items, target[user]) for user, items in found.items()]
    assert metrics(ws, "test")["retrieval only"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-9)


def test_repeats_allowed_are_judged_with_repeats(shop, tmp_path):
    ws = train(tmp_path / "run", shop.log, shop, "recommend.exclude_known=false")
    evaluate_run(ws, EvaluationOptions(part=Part.TEST, baselines=False), log=quiet(ws))
    found = by_user(exported(ws, Asked.TEST, tmp_path, k=ITEMS))
    assert all(len(items) == ITEMS for items in found.values())
    target = {user: items[-1] for user, items in histories_by_id().items()}
    gains = [ndcg10(items, target[user]) for user, items in found.items()]
    assert metrics(ws, "test")["tandem"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-9)


def test_validation_asks_group_b_only(shop):
    ws = open_workspace(shop.run)
    in_b = group_of_users(ws.dataset.users)
    assert 5 < in_b.sum() < 60
    assert in_b[ws.selectors.user_rows].all()
    assert not in_b[ws.learners.user_rows].any()
    assert len(ws.selectors) + len(ws.learners) == len(ws.split.validation)


def test_the_report_holds_all_systems_the_ceiling_and_verdicts(weighed):
    report, page = evaluate_run(weighed, EvaluationOptions(), log=quiet(weighed))
    names = {system.name for system in report.systems}
    assert names == {
        *("tandem", "retrieval only", "towers alone", "recency alone", "sequence alone", "transitions alone"),
        *("text profile alone", "popularity", "recent popularity", "item-knn", "ease", "ials", "transitions + text"),
    }
    assert [test.question for test in report.comparisons] == [
        "Is it better than the best baseline?",
        "Does reranking help?",
    ]
    tandem, retrieval = (metrics(weighed, "validation")[name] for name in ("tandem", "retrieval only"))
    assert report.comparisons[1].test.difference == pytest.approx(tandem["ndcg@10"] - retrieval["ndcg@10"])
    assert report.comparisons[0].theirs == max(
        ("popularity", "recent popularity", "item-knn", "ease", "ials", "transitions + text"),
        key=lambda name: metrics(weighed, "validation")[name]["ndcg@10"],
    )
    assert metrics(weighed, "validation")["transitions alone"]["ndcg@10"] > 0.5  # the planted rule
    assert metrics(weighed, "validation")["popularity"]["ndcg@10"] < 0.3
    assert report.cost["candidates reranked per user"] == 8
    assert report.cost["prompt tokens per user"] > 8
    assert report.ceiling[8] <= report.ceiling[50] if 8 in report.ceiling else report.ceiling
    assert {"report.json", "report.html", "per_user.parquet"} <= {path.name for path in page.parent.iterdir()}
    told = summary(report, page)
    assert all(name in told for name in names)
    assert "evaluation fit" in told
    assert any("more than one standard error" in note for note in report.notes)


def test_a_reranker_without_weight_costs_nothing_in_the_report_and_it_says_so(shop, tmp_path):
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.0)
    ws = open_workspace(root)
    report, _ = evaluate_run(ws, PLAIN, log=quiet(ws))
    assert report.cost["candidates reranked per user"] == report.cost["prompt tokens per user"] == 0
    assert any("weight is 0 and it is not run" in note for note in report.notes)
    figures = metrics(ws, "validation")
    assert figures["tandem"] == figures["retrieval only"]


def test_without_a_reranker_retrieval_stands_alone_and_the_report_says_why(weighed):
    report, _ = evaluate_run(weighed, EvaluationOptions(rerank=False, baselines=False), log=quiet(weighed))
    assert "tandem" not in {system.name for system in report.systems}
    assert any("it was not asked" in note for note in report.notes)


def test_fewer_users_asked_are_some_of_all(weighed):
    all_of, _ = evaluate_run(weighed, EvaluationOptions(part=Part.TEST, baselines=False), log=quiet(weighed))
    some, _ = evaluate_run(weighed, EvaluationOptions(part=Part.TEST, users=30, baselines=False), log=quiet(weighed))
    assert len(some.user_ids) == 30
    assert set(some.user_ids) < set(all_of.user_ids)
    assert "30 users drawn by hash" in some.split
    assert "drawn" not in all_of.split
    more = EvaluationOptions(part=Part.TEST, users=len(all_of.user_ids), baselines=False, rerank=False)
    assert "drawn" not in evaluate_run(weighed, more, log=quiet(weighed))[0].split
