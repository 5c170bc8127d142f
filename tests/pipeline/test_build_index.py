"""`build-index` with a kind, a target and a memory: what is published, what its key follows, and what is refused."""

import json
from pathlib import Path

import pytest

from index.faiss_index import load_index
from index.manifest import read_manifest
from pipeline.workspace import open_workspace
from store.artifacts import Run
from store.errors import BadInput
from tests.pipeline.commands import refused, run
from tests.pipeline.shop import Shop


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
