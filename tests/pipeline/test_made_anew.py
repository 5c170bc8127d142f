"""A training made anew keeps its key and may have chosen otherwise: what followed the former one is made again."""

import json
import shutil
from pathlib import Path

import pytest

from eval.results import Role
from pipeline.build_index import build_index
from pipeline.evaluate import EvaluationOptions, Part, evaluate_run
from pipeline.fit_final import fit_final
from pipeline.train_reranker import train_reranker
from pipeline.train_retriever import UNFINISHED, train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from store.artifacts import MANIFEST
from tests.pipeline.shop import quiet, train, weigh_reranker


@pytest.fixture
def ws(shop, tmp_path) -> Workspace:
    return open_workspace(shop.copy(tmp_path))


def anew(ws: Workspace, kind: str = "retriever") -> None:
    """As if its training had come out a little differently."""
    made_from = ws.retriever_made_from(FitKind.EVALUATION) if kind == "retriever" else None
    made_from = made_from or ws.reranker_made_from(FitKind.EVALUATION)
    key = ws.retriever_key(FitKind.EVALUATION) if kind == "retriever" else ws.reranker_key(FitKind.EVALUATION)
    there = ws.run.artifact(kind, key)
    follows = ws.run.manifest(kind, key)["follows"]

    def write(folder: Path) -> None:
        shutil.copytree(there, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        (folder / "other.txt").write_text("in another way")

    before = ws.run.content(kind, key)
    assert ws.run.write_artifact(kind, made_from, write, follows=follows) == key
    assert ws.run.content(kind, key) != before


def follows(ws: Workspace, kind: str, fit: FitKind) -> dict[str, str]:
    key = ws.retriever_key(fit) if kind == "retriever" else ws.reranker_key(fit)
    return ws.run.manifest(kind, key)["follows"]


def test_a_reranker_of_the_former_training_is_neither_published_nor_judged_nor_kept(ws, capsys):
    assert ws.has_reranker(FitKind.EVALUATION)
    anew(ws)
    assert not ws.has_reranker(FitKind.EVALUATION)
    assert build_index(ws, log=quiet(ws)).reranker is None
    report, _ = evaluate_run(ws, EvaluationOptions(baselines=False), log=quiet(ws))
    assert [one.name for one in report.systems if one.role is Role.OURS] == ["retrieval only"]
    before = ws.run.content("reranker", ws.reranker_key(FitKind.EVALUATION))
    key = train_reranker(ws, log=quiet(ws))
    assert key == ws.run.release().reranker == ws.reranker_key(FitKind.EVALUATION)
    assert ws.run.content("reranker", key) != before
    assert ws.has_reranker(FitKind.EVALUATION)
    assert follows(ws, "reranker", FitKind.EVALUATION) == ws.follows("reranker", FitKind.EVALUATION)


@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_final_fit_repeats_the_choices_that_are_there_now(ws, kind):
    weigh_reranker(ws.run.root, retrieval=1, reranker=1)
    fit_final(ws, log=quiet(ws))
    kept = ws.run.content("retriever", ws.retriever_key(FitKind.FINAL))
    fit_final(ws, log=quiet(ws))
    assert ws.run.content("retriever", ws.retriever_key(FitKind.FINAL)) == kept  # nothing has changed: nothing is made
    anew(ws, kind)
    if kind == "retriever":
        train_reranker(ws, log=quiet(ws))
        weigh_reranker(ws.run.root, retrieval=1, reranker=1)
    assert not ws.is_current(kind, FitKind.FINAL)
    fit_final(ws, log=quiet(ws))
    assert ws.is_current("retriever", FitKind.FINAL)
    assert ws.has_reranker(FitKind.FINAL)


def test_what_older_versions_made_stays(ws):
    path = ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION)) / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["follows"]
    path.write_text(json.dumps(manifest))
    anew(ws)
    assert ws.has_reranker(FitKind.EVALUATION)


def test_the_test_of_a_temporal_split_is_asked_of_what_validation_chooses_now(shop, tmp_path):
    ws = train(tmp_path / "run", shop.log, shop, "split.kind=temporal", "split.test_share=0.2")
    options = EvaluationOptions(part=Part.TEST, baselines=False)
    evaluate_run(ws, options, log=quiet(ws))
    key = ws.retriever_key(FitKind.BEFORE_TEST)
    kept = ws.run.content("retriever", key)
    evaluate_run(ws, options, log=quiet(ws))
    assert ws.run.content("retriever", key) == kept
    anew(ws)
    # And a training of it that was killed under other settings is no hindrance, as nobody could start it anew.
    left = ws.run.root / UNFINISHED / f"{FitKind.BEFORE_TEST.value}-recency-1"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{}")
    evaluate_run(ws, options, log=quiet(ws))
    assert ws.is_current("retriever", FitKind.BEFORE_TEST)
    assert not left.exists()


def test_a_whole_training_is_left_alone(ws):
    kept = ws.run.content("retriever", ws.retriever_key(FitKind.EVALUATION))
    train_retriever(ws, log=quiet(ws))
    assert ws.run.content("retriever", ws.retriever_key(FitKind.EVALUATION)) == kept
