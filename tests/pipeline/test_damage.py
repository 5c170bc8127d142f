"""Broken files, mixed releases, full disks, kills and crowds: an exit code, a way out, and the last release stays."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.workspace import FitKind, Workspace, open_workspace
from store.artifacts import MANIFEST, Release, Run
from store.errors import CorruptArtifact, Mismatch, MissingStep, NoSpace, RunBusy
from tests.pipeline.commands import Done, Faults, refused, run, start
from tests.pipeline.shop import Shop, log_rows, sentence_model, train, write_rows

ARTIFACTS = ("dataset", "text_vectors", "retriever", "vectors", "index", "reranker")


def tandem(command: str, root: Path, *more: object, faults: Faults | None = None) -> Done:
    return run(*command.split(), "--run", root, *more, cwd=root.parent, faults=faults)


def recommended(root: Path) -> list[str]:
    done = tandem("recommend", root, "--user", "u010", "--json")
    assert done.code == 0, done.err
    return [item["item_id"] for item in json.loads(done.out)["items"]]


def folder_of(root: Path, kind: str) -> Path:
    release = asdict(Run(root).release())
    if kind == "text_vectors":
        (only,) = (root / "artifacts" / kind).iterdir()
        return only
    return root / "artifacts" / kind / str(release[kind])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 0x40
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


# --- broken files


REMEDIES = {
    "dataset": "prepare",
    "text_vectors": "train-retriever",
    "retriever": "train-retriever",
    "vectors": "build-index",
    "index": "build-index",
    "reranker": "train-reranker",
}


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, remove])
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_a_broken_artifact_is_named_with_its_remedy_and_the_remedy_heals(
    root: Path, shop: Shop, kind: str, harm: Callable[[Path], None]
):
    before = recommended(root) if harm is flip_a_bit else None
    harm(largest(folder_of(root, kind)))
    command = REMEDIES[kind]
    told = refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, kind, f"python cli.py {command} --run")
    assert "missing" in told or "altered" in told or "bytes instead of" in told
    if before is not None:
        files = [shop.log, shop.catalog, *shop.set_options] if command == "prepare" else []
        healed = tandem(command, root, *files)
        assert healed.code == 0, healed.err
        after = recommended(root)
        # A reranker is trained anew, and what it learns here gets no weight; all else comes back as it was.
        assert len(after) == 10 if kind == "reranker" else after == before


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_a_half_written_manifest(root: Path, kind: str):
    truncate(folder_of(root, kind) / MANIFEST)
    refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, MANIFEST, REMEDIES[kind])


def test_a_broken_final_fit_is_healed_by_another(root: Path):
    assert tandem("fit --final", root).code == 0
    before = recommended(root)
    for kind in ("retriever", "reranker"):
        flip_a_bit(largest(folder_of(root, kind)))
        refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, "python cli.py fit --final --run")
        assert tandem("fit --final", root).code == 0
        assert recommended(root) == before


@pytest.mark.parametrize("command", ["evaluate", "build-index", "fit --final"])
def test_a_broken_reranker_is_never_taken_for_none(root: Path, command: str):
    before = Run(root).release()
    flip_a_bit(folder_of(root, "reranker") / "head.safetensors")
    refused(tandem(command, root), CorruptArtifact, "head.safetensors", "python cli.py train-reranker --run")
    assert Run(root).release() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_broken_current_json(root: Path, content: bytes):
    (root / "current.json").write_bytes(content)
    refused(tandem("recommend", root, "--user", "u010"), CorruptArtifact, "current.json", "delete it")


def test_a_broken_prepared_json(root: Path):
    (root / "prepared.json").write_text("{")
    refused(tandem("evaluate", root), CorruptArtifact, "prepared.json", "python cli.py prepare")


def test_a_broken_model_folder(shop: Shop, root: Path, tmp_path: Path):
    model = Path(shutil.copytree(shop.model, tmp_path / "model"))
    truncate(model / "model.safetensors")
    options = ["--set", f"retriever.encoder.model={model}"]
    refused(tandem("train-retriever", root, *options), CorruptArtifact, str(model))
    assert len(recommended(root)) == 10


def test_a_base_model_that_was_exchanged_under_its_reranker(shop: Shop, tmp_path: Path):
    own = Shop(
        tmp_path, shop.log, shop.catalog, Path(shutil.copytree(shop.model, tmp_path / "model")), tmp_path / "run"
    )
    train(own.run, own.log, own)
    assert len(recommended(own.run)) == 10
    shutil.rmtree(own.model)
    sentence_model(own.model, seed=1)
    refused(tandem("recommend", own.run, "--user", "u010"), Mismatch, "train-reranker", "fingerprint")
    refused(tandem("recommend", own.run, "--query", "bal"), Mismatch)


def test_a_broken_asset_says_so_and_how_to_get_it_again(shop: Shop, root: Path, tmp_path: Path):
    from store.artifacts import listing_of
    from store.assets import ASSETS, FORMAT

    folder = Path(shutil.copytree(shop.model, tmp_path / "assets" / "minilm-l6"))
    manifest = {"format": FORMAT, "wheel_sha256": ASSETS["minilm-l6"].sha256, "files": listing_of(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    env = {"TANDEM_ASSETS": str(tmp_path / "assets")}
    options = ["--run", root, "--set", "retriever.encoder.model=minilm-l6"]
    done = run("train-retriever", *options, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    for harm in (flip_a_bit, truncate):
        harm(folder / "model.safetensors")
        done = run("train-retriever", "--force", *options, cwd=tmp_path, env=env)
        refused(done, CorruptArtifact, "minilm-l6", "model.safetensors", "python cli.py fetch minilm-l6 --verify")
    shutil.rmtree(folder)
    refused(run("train-retriever", *options, cwd=tmp_path, env=env), MissingStep, "python cli.py fetch minilm-l6")


# --- what does not belong together


@pytest.fixture(scope="module")
def two_retrievers(
    shop: Shop, weighed: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Release, Release]:
    """A run that holds the releases of two settings, and both."""
    root = Path(shutil.copytree(weighed.run.root, tmp_path_factory.mktemp("two") / "run"))
    first = Run(root).release()
    train(root, shop.log, shop, "retriever.recency.epochs=1")
    return root, first, Run(root).release()


@pytest.mark.parametrize(
    ("part", "command"), [("index", "build-index"), ("reranker", "train-reranker"), ("vectors", "build-index")]
)
def test_parts_of_two_releases_do_not_mix(two_retrievers, tmp_path: Path, part: str, command: str):
    source, first, second = two_retrievers
    root = Path(shutil.copytree(source, tmp_path / "run"))
    Run(root).publish(**{**asdict(first), part: asdict(second)[part]})
    refused(tandem("recommend", root, "--user", "u010"), Mismatch, f"python cli.py {command} --run")
    Run(root).publish(**asdict(first))
    assert len(recommended(root)) == 10


def test_a_retriever_of_other_data(shop: Shop, root: Path, tmp_path: Path):
    first = Run(root).release()
    few = write_rows(tmp_path / "few.csv", ["user_id", "item_id", "timestamp"], log_rows()[300:])
    train(root, few, shop)
    Run(root).publish(**{**asdict(Run(root).release()), "retriever": first.retriever})
    refused(tandem("recommend", root, "--user", "u110"), Mismatch, "python cli.py train-retriever --run")


def test_a_retriever_trained_again_behind_its_index(root: Path):
    """The key is the same, the weights are not, as after --force on another machine."""
    from safetensors.torch import load_file, save_file

    ws = open_workspace(root)
    folder = ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION))

    def write(new: Path) -> None:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        (new / MANIFEST).unlink()
        weights = load_file(new / "towers.safetensors")
        save_file({name: value + 0.05 for name, value in weights.items()}, new / "towers.safetensors")

    ws.run.write_artifact("retriever", ws.retriever_made_from(FitKind.EVALUATION), write)
    refused(tandem("recommend", root, "--user", "u010"), Mismatch, "trained again", "python cli.py build-index --run")
    assert tandem("build-index", root).code == 0
    assert len(recommended(root)) == 10


# --- kills and full disks


WRITING = ("prepare", "train-retriever", "build-index", "train-reranker", "fit --final")


def writing(command: str, root: Path, shop: Shop, *, faults: Faults) -> Done:
    """A writing command that has something new to write."""
    if command == "prepare":
        few = write_rows(root.parent / "few.csv", ["user_id", "item_id", "timestamp"], log_rows()[100:])
        return tandem(command, root, few, shop.catalog, *shop.set_options, faults=faults)
    more = {
        "train-retriever": ["--set", "retriever.recency.epochs=1"],
        "train-reranker": ["--set", "reranker.train.seed=1"],
        "evaluate": ["--no-baselines"],
    }
    return tandem(command, root, *more.get(command, []), faults=faults)


def before_writing(command: str, root: Path, shop: Shop) -> None:
    if command == "build-index":
        assert tandem("train-retriever", root, "--set", "retriever.recency.epochs=1").code == 0


@pytest.mark.parametrize("command", WRITING)
def test_killed_at_any_point_the_last_release_still_recommends(command: str, root: Path, shop: Shop, tmp_path: Path):
    before_writing(command, root, shop)
    old, answer = (root / "current.json").read_bytes(), recommended(root)
    whole = Path(shutil.copytree(root, tmp_path / "whole" / "run"))
    done = writing(command, whole, shop, faults=Faults())
    assert done.code == 0, done.err
    new, new_answer = (whole / "current.json").read_bytes(), recommended(whole)
    assert done.syncs >= 3
    for kill_at in (done.syncs // 2, done.syncs - 1):
        struck = Path(shutil.copytree(root, tmp_path / f"killed-{kill_at}" / "run"))
        killed = writing(command, struck, shop, faults=Faults(kill_at_sync=kill_at))
        assert killed.code == -9, f"{command}, fsync {kill_at} of {done.syncs}: {killed.err}"
        left = (struck / "current.json").read_bytes()
        assert left in (old, new)
        assert recommended(struck) == (answer if left == old else new_answer)
    finished = writing(command, struck, shop, faults=Faults())
    assert finished.code == 0, finished.err
    assert (struck / "current.json").read_bytes() == new
    assert recommended(struck) == new_answer
    assert not list((struck / "artifacts").rglob(".tmp-*"))


@pytest.mark.parametrize("wait_for", ["recency-1  epoch 2 ", "sequence-1  epoch 3 "])
def test_a_training_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(root: Path, tmp_path: Path, wait_for: str):
    more = [part for kind in ("recency", "sequence") for part in ("--set", f"retriever.{kind}.epochs=20")]
    whole = Path(shutil.copytree(root, tmp_path / "whole" / "run"))
    assert tandem("train-retriever", whole, *more).code == 0
    under_way = start("train-retriever", "--run", root, *more, cwd=root.parent)
    under_way.wait_for(wait_for)
    under_way.kill()
    assert under_way.wait().code == -9
    done = tandem("train-retriever", root, *more)
    assert done.code == 0, done.err
    assert f"{wait_for.split()[0]}  event resumed" in done.err
    assert "recency-1  epoch 1 " not in done.err
    key = done.out.strip()
    weights = [folder / "artifacts" / "retriever" / key / "towers.safetensors" for folder in (root, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (root / "unfinished").exists()


def test_an_unfinished_training_with_other_settings_is_refused_until_forced(root: Path):
    options = ["--run", root, "--set", "retriever.recency.epochs=40"]
    under_way = start("train-retriever", *options, cwd=root.parent)
    under_way.wait_for("recency-1  epoch 2 ")
    under_way.kill()
    under_way.wait()
    other = ["--set", "retriever.recency.epochs=40", "--set", "retriever.recency.learning_rate=0.01"]
    refused(
        tandem("train-retriever", root, *other), Mismatch, r"retriever\.recency\.learning_rate 0\.02 → 0\.01", "--force"
    )
    assert tandem("train-retriever", root, *other, "--force").code == 0


@pytest.mark.parametrize("command", [*WRITING, "evaluate"])
def test_on_a_full_disk_the_last_release_stays(command: str, root: Path, shop: Shop):
    before_writing(command, root, shop)
    old, answer = (root / "current.json").read_bytes(), recommended(root)
    refused(writing(command, root, shop, faults=Faults(file_limit=600)), NoSpace, "cannot write", "make room")
    assert (root / "current.json").read_bytes() == old
    assert recommended(root) == answer


def test_an_export_to_a_full_disk_leaves_the_old_file(root: Path, tmp_path: Path):
    options = ["--all", "-k", 10, "-o", tmp_path / "recs.parquet"]
    assert tandem("recommend", root, *options).code == 0
    before = (tmp_path / "recs.parquet").read_bytes()
    refused(tandem("recommend", root, *options, faults=Faults(file_limit=500)), NoSpace, "recs.parquet")
    assert (tmp_path / "recs.parquet").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


# --- two at once


@pytest.mark.parametrize("command", [*WRITING, "evaluate", "quickstart"])
def test_a_second_writer_is_refused_and_told_who_is_first(command: str, root: Path, shop: Shop):
    with Run(root).work():
        if command == "quickstart":
            done = tandem(command, root, shop.log, shop.catalog, *shop.set_options)
        else:
            done = writing(command, root, shop, faults=Faults())
        refused(done, RunBusy, "is being written by process", "run this command again")
        assert len(recommended(root)) == 10  # reading goes on


def test_two_trainings_at_once_never_mix(root: Path, shop: Shop):
    options = ["--run", root, "--set", "retriever.recency.epochs=40", "--set", "retriever.train.patience=40"]
    first = start("train-retriever", *options, cwd=root.parent)
    first.wait_for("epoch 1")
    second = tandem("train-retriever", root, "--set", "retriever.recency.epochs=1")
    assert "epochs = 40" not in (root / "config.toml").read_text()  # settings are kept when their step is done
    assert len(recommended(root)) == 10
    refused(second, RunBusy, "train-retriever")
    assert first.wait().code == 0
    assert "epochs = 40" in (root / "config.toml").read_text()
