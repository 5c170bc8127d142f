"""Runs: artifacts are whole or absent, releases are published at once."""

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from store.artifacts import Release, Run, Verify, atomic_write
from store.errors import CorruptArtifact, Mismatch, MissingStep, NoSpace
from store.releases import published


def writes(text: str):
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "numbers.bin").write_text(text)

    return write


def python(code: str, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=Path.cwd(), timeout=60)


def everything_in(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_an_artifact_comes_back_with_its_files_and_what_it_was_made_from(tmp_path):
    run = Run(tmp_path / "run")
    key = run.write_artifact("retriever", {"rank": 8, "data": "ab"}, writes("first"))
    folder = run.artifact("retriever", key, verify=Verify.FULL)
    assert folder == tmp_path / "run" / "artifacts" / "retriever" / key
    assert (folder / "deep" / "numbers.bin").read_text() == "first"
    manifest = run.manifest("retriever", key)
    assert manifest["made_from"] == {"rank": 8, "data": "ab"}
    assert manifest["files"]["deep/numbers.bin"]["bytes"] == len("first")


def test_the_key_follows_from_kind_and_origin_alone(tmp_path):
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    key = one.write_artifact("retriever", {"a": 1, "b": 2}, writes("x"))
    assert other.write_artifact("retriever", {"b": 2, "a": 1}, writes("y")) == key
    assert other.write_artifact("retriever", {"b": 3, "a": 1}, writes("y")) != key
    assert other.write_artifact("index", {"b": 2, "a": 1}, writes("y")) != key
    assert len(key) == 16


def test_a_run_has_no_side_effects_before_the_first_write(tmp_path):
    run = Run(tmp_path / "run")
    assert run.release() == Release()
    assert run.data_dir == tmp_path / "run" / "data"
    assert not run.root.exists()


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path):
    run = Run(tmp_path)
    key = run.write_artifact("index", {"n": 1}, writes("old"))
    assert run.write_artifact("index", {"n": 1}, writes("new")) == key
    assert (run.artifact("index", key) / "deep" / "numbers.bin").read_text() == "new"
    assert [path.name for path in (tmp_path / "artifacts" / "index").iterdir()] == [key]


def test_a_failed_write_leaves_the_old_artifact_and_no_rubbish(tmp_path):
    run = Run(tmp_path)
    key = run.write_artifact("index", {"n": 1}, writes("old"))
    before = everything_in(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run.write_artifact("index", {"n": 1}, fails)
    assert everything_in(tmp_path) == before
    assert run.artifact("index", key, verify=Verify.FULL)


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingStep, match=r"no retriever 0123.*python cli.py train-retriever --run"):
        Run(tmp_path).artifact("retriever", "0123")
    with pytest.raises(MissingStep, match=r"no data.*python cli.py prepare --run"):
        Run(tmp_path).folder("data")


@pytest.mark.parametrize(
    ("damage", "told", "verify"),
    [
        (lambda file: file.write_text("longer than it was"), "18 bytes instead of 5", Verify.SIZES),
        (lambda file: file.unlink(), "numbers.bin is missing", Verify.SIZES),
        (lambda file: file.write_text("FIRST"), "altered", Verify.FULL),
        (lambda file: (file.parents[1] / "manifest.json").write_text('{"ha'), "unreadable", Verify.SIZES),
        (lambda file: (file.parents[1] / "manifest.json").write_text("[]"), "unreadable", Verify.SIZES),
        (lambda file: (file.parents[1] / "manifest.json").unlink(), "unreadable", Verify.SIZES),
        (
            lambda file: (file.parents[1] / "manifest.json").write_text('{"hash": "x", "files": {}}'),
            "names x",
            Verify.SIZES,
        ),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_fault_and_the_command(tmp_path, damage, told, verify):
    run = Run(tmp_path)
    key = run.write_artifact("index", {}, writes("first"))
    damage(run.artifact("index", key) / "deep" / "numbers.bin")
    with pytest.raises(CorruptArtifact, match=told) as caught:
        run.artifact("index", key, verify=verify)
    assert "python cli.py build-index" in str(caught.value)


def test_publishing_merges_into_the_release(tmp_path):
    run = Run(tmp_path)
    run.publish(retriever="a", vectors="b")
    assert run.publish(index="c", vectors=None) == Release(retriever="a", index="c")
    assert Run(tmp_path).release() == Release(retriever="a", index="c")
    with pytest.raises(TypeError):
        run.publish(retrieved="a")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"retriever": "a"}', "\x00"])
def test_an_unreadable_release_is_refused(tmp_path, content):
    (tmp_path / "current.json").write_text(content)
    with pytest.raises(CorruptArtifact, match=r"current\.json is unreadable"):
        Run(tmp_path).release()


def test_what_a_newer_version_wrote_is_refused_and_not_written_over(tmp_path):
    run = Run(tmp_path)
    key = run.write_artifact("index", {}, writes("first"))
    run.publish(index=key)
    manifest, current = run.artifact("index", key) / "manifest.json", tmp_path / "current.json"
    (record,) = (tmp_path / "releases").iterdir()
    for path, reads in (
        (manifest, lambda: run.artifact("index", key)),
        (manifest, lambda: run.has("index", key)),
        (record, lambda: published(run)),
        (current, run.release),
        (current, lambda: run.publish(index=None)),
    ):
        as_it_was = path.read_text()
        path.write_text(as_it_was.replace('"format": 1', '"format": 2'))
        with pytest.raises(Mismatch, match=rf"{path.name} has format 2, this version reads up to 1: a newer") as caught:
            reads()
        assert caught.value.exit_code == 6
        path.write_text(as_it_was)
    assert published(run)[-1].release == run.release()


def test_a_folder_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    run = Run(tmp_path)
    run.write_folder("data", lambda folder: atomic_write(folder / "log", "old") or None)

    def fails(folder: Path) -> None:
        atomic_write(folder / "log", "new")
        assert (run.data_dir / "log").read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.write_folder("data", fails)
    assert (run.folder("data") / "log").read_text() == "old"
    run.write_folder("data", lambda folder: atomic_write(folder / "log", "new"))
    assert (run.data_dir / "log").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "data"]


KILLED = """
import os, pathlib, signal, sys
import store.atomic
from store.artifacts import Run

root, where = pathlib.Path(sys.argv[1]), sys.argv[2]
run = Run(root)
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    (folder / "half").write_text("half")
    if where == "inside write":
        die()
    (folder / "deep").mkdir()
    (folder / "deep" / "numbers.bin").write_text("new")

if where == "before the manifest":
    import store.artifacts
    store.artifacts.listing_of = die
if where == "before the swap":
    store.atomic._swap = die
if where == "in the middle of the swap":
    rename = pathlib.Path.rename
    def dies_second(self, target):
        if self.name.startswith(".tmp-"):
            die()
        return rename(self, target)
    pathlib.Path.rename = dies_second
if where == "after the swap":
    store.atomic.sync = lambda path: die() if path.name == "index" else None
if where == "before the rename of current.json":
    pathlib.Path.replace = die
key = run.write_artifact("index", {"n": 1}, write)
run.publish(index=key)
die()
"""


@pytest.mark.parametrize(
    "where",
    [
        "inside write",
        "before the manifest",
        "before the swap",
        "in the middle of the swap",
        "after the swap",
        "before the rename of current.json",
        "after everything",
    ],
)
def test_a_kill_at_any_point_leaves_the_release_readable_and_the_next_write_cleans_up(tmp_path, where):
    run = Run(tmp_path)
    key = run.write_artifact("index", {"n": 1}, writes("old"))
    run.publish(index=key)
    assert python(KILLED, tmp_path, where, check=False).returncode == -9
    assert run.release().index == key
    found = (run.artifact("index", key, verify=Verify.FULL) / "deep" / "numbers.bin").read_text()
    assert found == ("new" if where.startswith(("after", "before the rename")) else "old")
    run.write_artifact("index", {"n": 1}, writes("third"))
    run.publish(index=key)
    assert (run.artifact("index", key) / "deep" / "numbers.bin").read_text() == "third"
    assert [path.name for path in (tmp_path / "artifacts" / "index").iterdir()] == [key]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "artifacts", "current.json", "releases"]


def test_the_data_folder_survives_a_kill_in_the_middle_of_its_swap(tmp_path):
    Run(tmp_path).write_folder("data", writes("old"))
    code = """
    import os, pathlib, sys
    from store.artifacts import Run
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda self, to: (
        os.kill(os.getpid(), 9) if self.name.startswith(".tmp-") else rename(self, to)
    )
    Run(pathlib.Path(sys.argv[1])).write_folder("data", lambda folder: None)
    """
    assert python(code, tmp_path, check=False).returncode == -9
    run = Run(tmp_path)
    assert not (tmp_path / "data").exists()
    assert (run.data_dir / "deep" / "numbers.bin").read_text() == "old"
    assert run.folder("data") == run.data_dir
    # Another folder of the run may be written meanwhile.
    run.write_folder("reports", writes("report"))
    assert (run.data_dir / "deep" / "numbers.bin").read_text() == "old"
    run.write_folder("data", writes("new"))
    assert (tmp_path / "data" / "deep" / "numbers.bin").read_text() == "new"


def test_a_disk_that_takes_no_more_is_told_and_the_old_artifact_stays(tmp_path):
    code = """
    import pathlib, resource, sys
    import polars as pl
    from store.artifacts import Run, atomic_write
    from store.errors import NoSpace
    run = Run(pathlib.Path(sys.argv[1]))
    key = run.write_artifact("index", {}, lambda folder: (folder / "f").write_bytes(b"old"))
    run.publish(index=key)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    frame = pl.DataFrame({"x": [str(n * 7919 % 1_000_003) for n in range(50_000)]})
    for write in (
        lambda: run.write_artifact("index", {}, lambda folder: (folder / "f").write_bytes(b"1" * 100_000)),
        lambda: run.write_artifact("index", {}, lambda folder: frame.write_parquet(folder / "f")),
        lambda: run.write_folder("data", lambda folder: frame.write_csv(folder / "f")),
        lambda: atomic_write(run.root / "current.json", "1" * 100_000),
    ):
        try:
            write()
        except NoSpace as error:
            assert "File too large" in str(error) and "untouched" in str(error), error
        else:
            raise SystemExit("no error")
    assert (run.artifact("index", key, verify="full") / "f").read_bytes() == b"old"
    assert run.release().index == key
    """
    python(code, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp", ".old"))]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_the_disk_says_becomes_no_space(tmp_path, monkeypatch, code):
    run = Run(tmp_path)
    run.publish(index="a")

    def refuses(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(NoSpace, match=f"cannot write .*releases.*{os.strerror(code)}"):
        run.publish(index="b")
    with pytest.raises(NoSpace, match=os.strerror(code)):
        run.write_artifact("index", {}, writes("x"))
    assert run.release().index == "a"


def test_words_of_the_disk_inside_a_librarys_own_exception_are_recognised(tmp_path):
    def fails(folder: Path) -> None:
        raise RuntimeError("Error in write: No space left on device")

    with pytest.raises(NoSpace, match="No space left"):
        Run(tmp_path).write_artifact("index", {}, fails)


def test_a_run_directory_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NoSpace, match="File exists"):
        Run(tmp_path / "run").publish(index="a")


def test_a_written_file_is_replaced_whole_and_dead_writers_leftovers_go(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".tmp-a.json-{dead.pid}-00000000").write_text("half")
    (tmp_path / f".tmp-a.json-{os.getpid()}-00000000").write_text("at work")
    atomic_write(tmp_path / "a.json", "é")
    assert (tmp_path / "a.json").read_bytes() == "é".encode()
    atomic_write(tmp_path / "a.json", b"\x00")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f".tmp-a.json-{os.getpid()}-00000000", "a.json"]


def test_the_manifest_is_json_that_people_can_read(tmp_path):
    run = Run(tmp_path)
    key = run.write_artifact("index", {"name": "é"}, writes("x"))
    content = (run.artifact("index", key) / "manifest.json").read_text()
    assert '"é"' in content
    assert json.loads(content)["kind"] == "index"
