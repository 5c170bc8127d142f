"""What a run costs, as its commands put it down: the ledger, the day's tokens, what a report says of money."""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from config import with_overrides
from pipeline import export as module
from pipeline.engine import HERE, Engine, EngineKind
from pipeline.evaluate import COST_OF_1000, EvaluationOptions, Part, evaluate_run
from pipeline.export import Asked, Exported, export
from pipeline.train_reranker import RECORD
from pipeline.train_retriever import UNFINISHED, train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from recommend.ledger import FILE, LEDGER, Ledger, Spent
from recommend.recommender import Rerank
from rerank.card import HEAD_FILE
from retrieval.folder import read_card
from store.artifacts import MANIFEST
from tests.pipeline.commands import run
from tests.pipeline.oracle import by_user
from tests.pipeline.shop import Shop, quiet

PLAIN = EvaluationOptions(part=Part.TEST, baselines=False)


def spent_by(ws: Workspace) -> Spent:
    return Ledger.read(ws.run.root / LEDGER).total


def fresh(root: Path, *settings: str) -> Workspace:
    """The run without what it has cost so far."""
    shutil.rmtree(root / LEDGER, ignore_errors=True)
    ws = open_workspace(root)
    return replace(ws, config=with_overrides(ws.config, settings))


def for_all(ws: Workspace, path: Path, *, engine: Engine = HERE, rerank: Rerank = Rerank.AUTO) -> Exported:
    how = {"k": 12, "depth": 8, "users": 0, "rerank": rerank, "towers_only": False}
    return export(ws, Asked.TEST, path, **how, log=quiet(ws), engine=engine)


class Workers(Engine):
    """Two of them, who know nothing but what is pickled for them; what Ray does, in one process."""

    def made(self, prepare, parts):
        workers = [pickle.loads(pickle.dumps(prepare))() for _ in range(2)]
        for place, part in enumerate(parts):
            yield pickle.loads(pickle.dumps(workers[place % 2](pickle.loads(pickle.dumps(part)))))


WORKERS = Workers(EngineKind.RAY)


# --- lists for everybody


def test_lists_for_everybody_are_put_into_the_ledger(root: Path, tmp_path: Path):
    ws = fresh(root)
    exported = for_all(ws, tmp_path / "all.parquet")
    assert (exported.users, exported.rows, exported.failed, exported.capped) == (120, 120 * 12, 0, 0)
    assert exported.words == "1,440 rows"
    spent = spent_by(ws)
    assert (spent.requests, spent.reranked, spent.candidates) == (120, 120, 120 * 8)
    assert spent.prompt_tokens > 120 * 8
    assert min(spent.retrieval_ms, spent.rerank_ms) > 0
    export(
        ws,
        Asked.TEST,
        tmp_path / "towers.parquet",
        k=12,
        depth=None,
        users=30,
        rerank=Rerank.AUTO,
        towers_only=True,
        log=quiet(ws),
    )
    after = spent_by(ws)
    assert (after.requests, after.prompt_tokens) == (150, spent.prompt_tokens)
    assert after.retrieval_ms > spent.retrieval_ms


@pytest.mark.parametrize("engine", [HERE, WORKERS], ids=["one process", "two workers"])
def test_the_days_tokens_are_kept_by_all_who_make_lists(root: Path, tmp_path: Path, monkeypatch, engine: Engine):
    monkeypatch.setattr(module, "USERS_AT_ONCE", 25)  # 120 users: five parts
    ws = fresh(root)
    for_all(ws, tmp_path / "free.parquet")
    whole = spent_by(ws).fed_tokens
    capped = fresh(root, f"recommend.max_tokens_per_day={whole // 3}")
    exported = for_all(capped, tmp_path / "capped.parquet", engine=engine)
    fed = spent_by(capped).fed_tokens
    assert whole // 6 < fed <= whole // 3
    assert 0 < exported.capped < 120
    assert "users for whom less was read, or nothing (max_tokens_per_day)" in exported.words
    # Another command on the same day has what is left, and no more.
    assert for_all(capped, tmp_path / "again.parquet", engine=engine).capped > 100
    assert spent_by(capped).fed_tokens <= whole // 3


def spoil_reranker(root: Path) -> None:
    """Its head gives NaN."""
    ws = open_workspace(root)
    folder = ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION))

    def write(new: Path) -> None:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        (new / MANIFEST).unlink()
        head = load_file(new / HEAD_FILE)
        save_file({name: torch.full_like(value, torch.nan) for name, value in head.items()}, new / HEAD_FILE)

    follows = ws.follows("reranker", FitKind.EVALUATION)
    ws.run.write_artifact("reranker", ws.reranker_made_from(FitKind.EVALUATION), write, follows=follows)


def test_a_reranker_that_fails_spoils_no_list_and_is_counted(root: Path, tmp_path: Path):
    spoil_reranker(root)
    ws = fresh(root)
    exported = for_all(ws, tmp_path / "spoilt.parquet")
    assert exported.failed == 120
    told = "120 users in retrieval order, since the reranker failed (ValueError: the reranker's scores are not finite)"
    assert told in exported.words
    (entry,) = [
        json.loads(line) for line in (root / "log.jsonl").read_text().splitlines() if '"event": "exported"' in line
    ][-1:]
    assert (entry["failed"], entry["users"]) == (120, 120)
    for_all(ws, tmp_path / "retrieval.parquet", rerank=Rerank.NEVER)
    spoilt, retrieval = (by_user(pl.read_parquet(tmp_path / f"{name}.parquet")) for name in ("spoilt", "retrieval"))
    assert spoilt == retrieval
    with pytest.raises(ValueError, match="not finite"):  # a report must not hide it
        evaluate_run(ws, PLAIN, log=quiet(ws))


# --- one question


def test_one_question_is_one_entry(root: Path):
    fresh(root)
    done = run("recommend", "--run", root, "--user", "u010", "--json", cwd=root.parent)
    assert done.code == 0, done.err
    cost = json.loads(done.out)["cost"]
    spent = Ledger.read(root / LEDGER).total
    assert (spent.requests, spent.reranked, spent.prompt_tokens) == (1, 1, cost["prompt_tokens"])
    assert spent.rerank_ms == cost["rerank_ms"]
    assert cost["tied"] is False


# --- trainings


def test_trainings_of_both_stages_are_put_down(root: Path, shop: Shop):
    spent = Ledger.read(shop.run / LEDGER).total
    ws = open_workspace(shop.run)
    rounds = json.loads((ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION)) / RECORD).read_text())[
        "rounds"
    ]
    towers = read_card(ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION))).records
    assert spent.trainings == 2
    assert spent.training_tokens == sum(one["tokens"] for one in rounds) > 0
    assert spent.training_minutes >= sum(one["minutes"] for one in [*rounds, *towers]) * 0.99 > 0


def test_a_reranker_has_minutes_of_its_own_option(root: Path):
    done = run("train-reranker", "--run", root, "--budget-minutes", 0.25, cwd=root.parent)
    assert done.code == 0, done.err
    assert open_workspace(root).config.reranker.train.budget_minutes == 0.25


def test_training_the_first_stage_leaves_the_unfinished_training_of_a_reranker(root: Path):
    ws = open_workspace(root)
    theirs, ours = (root / UNFINISHED / f"{name}-easy" for name in ("reranker-evaluation", "final"))
    own = root / UNFINISHED / "evaluation-recency-1"
    for folder in (theirs, ours, own):
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    train_retriever(ws, log=quiet(ws), force=True)
    assert [folder.exists() for folder in (theirs, ours, own)] == [True, True, False]


# --- reports


def test_an_evaluation_is_not_cut_by_the_day_and_takes_nothing_of_it(root: Path):
    free, _ = evaluate_run(fresh(root), PLAIN, log=quiet(open_workspace(root)))
    ws = fresh(root, "recommend.max_tokens_per_day=0")
    capped, _ = evaluate_run(ws, PLAIN, log=quiet(ws))
    assert free.cost["prompt tokens per user"] == capped.cost["prompt tokens per user"] > 0
    assert [one.evaluation.metrics for one in free.systems] == [one.evaluation.metrics for one in capped.systems]
    assert not (root / LEDGER / FILE).exists()


def test_a_report_tells_what_a_thousand_recommendations_cost(root: Path):
    ws = fresh(root, "recommend.prices.per_million_tokens=5", "recommend.prices.per_machine_hour=0.9")
    (root / LEDGER).mkdir()
    training = Spent(trainings=1, training_tokens=4_000_000, training_minutes=90)
    (root / LEDGER / FILE).write_text(json.dumps({"2026-01-01": asdict(training)}))
    cost = evaluate_run(ws, PLAIN, log=quiet(ws))[0].cost
    ms = cost["retrieval, ms per user, in batches"] + cost["reranking, ms per user, in batches"]
    expected = cost["prompt tokens per user"] * 1000 / 1e6 * 5 + ms * 1000 / 3_600_000 * 0.9
    assert cost[COST_OF_1000] == pytest.approx(expected, rel=1e-2)
    assert cost["cost of the trainings so far"] == pytest.approx(4 * 5 + 1.5 * 0.9)
    assert cost["trainings of this run so far, minutes"] == 90
    assert cost["users whose candidates were all scored alike (retrieval order stays)"] == 0
    unpriced = fresh(root)
    assert "no prices" in evaluate_run(unpriced, PLAIN, log=quiet(unpriced))[0].cost[COST_OF_1000]


def test_tied_scores_are_told_in_the_report(root: Path):
    ws = open_workspace(root)
    folder = ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION))

    def write(new: Path) -> None:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        (new / MANIFEST).unlink()
        head = load_file(new / HEAD_FILE)
        level = {name: torch.zeros_like(value) for name, value in head.items()}
        level["log_temperature"] = torch.full_like(head["log_temperature"], -200.0)  # e^-200 is 0 in float32
        save_file(level, new / HEAD_FILE)

    follows = ws.follows("reranker", FitKind.EVALUATION)
    ws.run.write_artifact("reranker", ws.reranker_made_from(FitKind.EVALUATION), write, follows=follows)
    report, page = evaluate_run(ws, PLAIN, log=quiet(ws))
    line = "users whose candidates were all scored alike (retrieval order stays)"
    assert report.cost[line] == 120
    assert line in page.read_text()
