"""`build-index` with a kind, a target and a memory: what is published, what its key follows, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from config import with_overrides
from index.faiss_index import load_index
from index.manifest import read_manifest
from pipeline.build_index import build_index
from pipeline.fit_final import fit_final
from pipeline.run_log import RunLog
from pipeline.steps import STEPS
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, open_workspace
from store.artifacts import Run
from store.errors import BadInput
from tests.pipeline.commands import refused, run
from tests.pipeline.shop import Shop, quiet, weigh_reranker


def published(root: Path) -> Path:
    return Run(root).artifact("index", Run(root).release().index or "")


@pytest.mark.parametrize("kind", ["hnsw", "ivf-rabitq"])
def test_a_named_kind_is_published_and_recommends_as_the_flat_one(shop: Shop, tmp_path: Path, kind: str) -> None:
    asked = ("recommend", "--run", "run", "--user", "u010", "--json")
    root = shop.copy(tmp_path)
    flat = json.loads(run(*asked, cwd=tmp_path).out)["items"]
    done = run("build-index", "--run", "run", "--kind", kind, "--recall-target", 0.9, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.strip() == Run(root).release().index
    assert f"{kind} " in done.err
    assert "recall@60" in done.err
    manifest = read_manifest(published(root))
    assert (manifest.kind, manifest.report[0].layout.kind) == (kind, kind)
    assert open_workspace(root).config.index.recall_target == 0.9
    # All 60 items are scored, since more than a quarter of them is wanted: even this index misses nothing.
    found = json.loads(run(*asked, cwd=tmp_path).out)["items"]
    assert [item["item_id"] for item in found] == [item["item_id"] for item in flat]


def test_a_small_catalog_stays_flat(shop: Shop) -> None:
    manifest = read_manifest(published(shop.run))
    assert [trial.layout.kind for trial in manifest.report] == ["flat"]
    assert load_index(published(shop.run)).kind == "flat"


def test_changed_settings_ask_for_another_index(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    before = Run(root).release().index
    done = run("build-index", "--run", "run", "--set", "index.storage=bfloat16", cwd=tmp_path)
    assert done.code == 0, done.err
    assert Run(root).release().index != before
    assert read_manifest(published(root)).layout.storage == "bfloat16"


def test_what_cannot_be_built_leaves_the_release(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    before = Run(root).release()
    for options, pattern in (
        (["--kind", "annoy"], r"index\.kind"),
        (["--recall-target", "1.5"], r"index\.recall_target"),
        (["--kind", "flat", "--memory-mb", "0.0001"], r"no index of kind flat.*--memory-mb 1"),
    ):
        refused(run("build-index", "--run", "run", *options, cwd=tmp_path), BadInput, pattern)
    assert Run(root).release() == before


# --- beside a final fit


def test_another_index_keeps_the_final_fit_and_its_reranker_in_service(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    ws = open_workspace(root)
    before = ws.run.release()
    final = fit_final(ws, log=quiet(ws))
    done = run("build-index", "--run", root, "--set", "index.storage=bfloat16", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "built and served: the final fit" in done.err
    assert f"next: python cli.py recommend --run {root} --user u000" in done.err
    ws = open_workspace(root)
    release = ws.run.release()
    assert (release.retriever, release.reranker) == (final.retriever, final.reranker)
    assert release.index == ws.index_key(FitKind.FINAL) != final.index
    assert all(step.is_made(ws) for step in STEPS)
    # Settings of a reranker that nobody has trained for this fit: the one in service stays.
    changed = replace(ws, config=with_overrides(ws.config, ["reranker.train.list_size=5"]))
    assert build_index(changed, log=quiet(ws)).reranker == final.reranker
    assert build_index(ws, log=quiet(ws), fit=FitKind.EVALUATION).retriever == before.retriever


def test_a_reranker_trained_beside_a_final_fit_is_told_and_the_final_fit_stays(shop: Shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    ws = open_workspace(root)
    final = fit_final(ws, log=quiet(ws))
    done = run("train-reranker", "--run", root, "--set", "reranker.train.list_size=5", cwd=tmp_path)
    assert done.code == 0, done.err
    changed = open_workspace(root)
    assert done.out.strip() == changed.reranker_key(FitKind.EVALUATION) != ws.reranker_key(FitKind.EVALUATION)
    assert "published is the final fit, which stays as it is" in done.err
    assert ws.run.release() == final


def test_an_index_by_settings_that_the_final_fit_does_not_have_takes_it_back_and_says_so(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = open_workspace(shop.copy(tmp_path))
    fit_final(ws, log=quiet(ws))
    changed = replace(ws, config=with_overrides(ws.config, ["retriever.recency.epochs=1"]))
    train_retriever(changed, log=quiet(ws))
    release = build_index(changed, log=RunLog(ws.run, "test"))
    assert release.retriever == changed.retriever_key(FitKind.EVALUATION)
    told = capsys.readouterr().err
    assert "no longer served: a final fit that is not by the settings" in told
    assert "built and served: the evaluation fit" in told
