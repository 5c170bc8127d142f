"""A run directory: what each stage made, from what, and which of it belongs together."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from store.atomic import atomic_folder, atomic_write, present, sha256_of
from store.errors import CorruptArtifact, Mismatch, MissingStep
from store.fingerprint import canonical, fingerprint
from store.lock import holds, writer_lock

__all__ = ["Release", "Run", "Verify", "atomic_write", "fingerprint"]

FORMAT = 1
MANIFEST = "manifest.json"
CURRENT, RELEASES = "current.json", "releases"
WORK = ".work.lock"
PATIENCE_S = 120.0
"""For whoever is at work on a run and wants to write: others hold its lock for moments, compaction for longer."""

_MADE_BY = {
    "data": "prepare",
    "dataset": "prepare",
    "text_vectors": "train-retriever",
    "retriever": "train-retriever",
    "vectors": "build-index",
    "index": "build-index",
    "reranker": "train-reranker",
    "reports": "evaluate",
}


class Verify(StrEnum):
    """How an artifact is checked against its manifest before it is used."""

    SIZES = "sizes"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Release:
    """The keys of the artifacts that belong together and are served; None where there is none yet.

    Attributes:
        live: the journal, in live/, of what has changed since the index was made; None while nothing has.
    """

    dataset: str | None = None
    retriever: str | None = None
    vectors: str | None = None
    index: str | None = None
    reranker: str | None = None
    live: str | None = None

    @property
    def models(self) -> "Release":
        """The same without what changes while it is served."""
        return replace(self, live=None)


class Run:
    """One run directory: data/, artifacts/<kind>/<hash>/, current.json, releases/, live/, reports/, config.toml.

    Every writing method takes the run's lock by itself. Long commands exclude each other by `work`, and leave the lock
    to those who change items meanwhile; whoever must see nothing change between two writes takes it around both.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @property
    def data_dir(self) -> Path:
        """The prepared data; the last whole version, even after a killed command."""
        return present(self.root / "data")

    @property
    def reports_dir(self) -> Path:
        """The folder of evaluation reports."""
        return self.root / "reports"

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.toml"

    @contextmanager
    def lock(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Holds the run for a moment, to write; the same process may hold it several times over.

        Whoever is at work on the run waits for its turn, however short of time others are: hours of training are not
        to be lost to a change of an item.

        Raises:
            RunBusy: when another process holds it after `wait_s` seconds; the message names that process.
        """
        at_work = holds(self.root, name=WORK)
        with writer_lock(self.root, wait_s=max(wait_s, PATIENCE_S) if at_work else wait_s):
            yield

    @contextmanager
    def work(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Holds the run against other long commands, as trainings; items may be changed meanwhile.

        Raises:
            RunBusy: as `lock`.
        """
        with writer_lock(self.root, wait_s=wait_s, name=WORK):
            yield

    def write_artifact(
        self,
        kind: str,
        made_from: Mapping[str, Any],
        write: Callable[[Path], None],
        *,
        follows: Mapping[str, str] | None = None,
    ) -> str:
        """Lets `write` fill a new folder and puts it at artifacts/<kind>/<key> by one rename.

        Args:
            kind: what it is, such as "retriever".
            made_from: everything that it depends on: configs, fingerprints, keys of other artifacts.
            write: called with an empty folder; may make folders in it.
            follows: kind → `content` of other artifacts, where not only their keys matter.

        Returns:
            The key: 16 hexadecimal digits that follow from kind and made_from alone.

        Raises:
            NoSpace: when the disk is full or refuses the write; an older version of the artifact stays.
        """
        key = artifact_key(kind, made_from)
        with self.lock(), atomic_folder(self._place(kind, key)) as folder:
            write(folder)
            manifest = {
                "format": FORMAT,
                "kind": kind,
                "hash": key,
                "made_from": canonical(made_from),
                "follows": dict(follows or {}),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": listing_of(folder),
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        return key

    def artifact(self, kind: str, key: str, *, verify: Verify = Verify.SIZES) -> Path:
        """The folder of a whole artifact: every file of its manifest is there with the size it was written.

        Args:
            kind: as given to `write_artifact`.
            key: as returned by `write_artifact`.
            verify: FULL compares the SHA-256 of every file, too.

        Raises:
            MissingStep: when there is none; the message names the command that makes it.
            CorruptArtifact: when a file is missing, truncated or altered.
            Mismatch: when a newer version wrote it.
        """
        manifest = self.manifest(kind, key)
        folder = present(self._place(kind, key))
        faults = check_files(folder, manifest["files"], Verify(verify))
        if faults:
            raise CorruptArtifact(
                f"{folder} is damaged ({'; '.join(faults)}): make it again with "
                + _command(kind, self.root, manifest.get("made_from"))
            )
        return folder

    def has(self, kind: str, key: str) -> bool:
        """Whether a whole artifact is there, every byte as it was written: what is not is made again.

        Raises:
            Mismatch: when a newer version wrote it; that is not to be written over.
        """
        try:
            self.artifact(kind, key, verify=Verify.FULL)
        except (MissingStep, CorruptArtifact):
            return False
        return True

    def content(self, kind: str, key: str) -> str:
        """What tells two makings of the same key apart, as of a training that was made anew.

        Raises:
            MissingStep, CorruptArtifact, Mismatch: as `artifact`.
        """
        return fingerprint(self.manifest(kind, key)["files"])

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """What an artifact was made from, and its files, as written by `write_artifact`.

        Raises:
            MissingStep, CorruptArtifact, Mismatch: as `artifact`.
        """
        folder = present(self._place(kind, key))
        if not folder.is_dir():
            raise MissingStep(f"{self.root} has no {kind} {key}: make it with {_command(kind, self.root)}")
        manifest = read_manifest(folder, f"make it again with {_command(kind, self.root)}", key=key)
        _refuse_newer(manifest, folder / MANIFEST)
        return manifest

    def release(self) -> Release:
        """The release that current.json names; an empty one when nothing has been published.

        Raises:
            CorruptArtifact: when current.json cannot be read.
            Mismatch: when a newer version wrote it.
        """
        return self.numbered_release()[1]

    def numbered_release(self) -> tuple[int, Release]:
        """The release that current.json names, and its number; 0 when nothing has been published.

        Raises:
            CorruptArtifact, Mismatch: as `release`.
        """
        path = self.root / CURRENT
        try:
            return read_release(path)
        except FileNotFoundError:
            return 0, Release()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CorruptArtifact(
                f"{path} is unreadable ({error}): delete it and run the commands from "
                f"{_command('retriever', self.root)} on again; finished artifacts are found and reused"
            ) from error

    def publish(self, **parts: str | None) -> Release:
        """Merges `parts`, by the names of Release, into the release and publishes it by one rename.

        What was published stays on record in releases/, by number; to publish the same again changes nothing.

        Raises:
            NoSpace: when the disk is full or refuses the write; the release stays as it was.
        """
        with self.lock():
            number, before = self.numbered_release()
            release = replace(before, **parts)
            if release != before:
                # Older versions kept no record of what they published.
                for each, content in ((number, before), (number + 1, release)):
                    record = self.root / RELEASES / f"{each:06d}.json"
                    if each > number or (content != Release() and not record.exists()):
                        atomic_write(record, _as_json(each, content))
                number += 1
            atomic_write(self.root / CURRENT, _as_json(number, release))
        return release

    def write_folder(self, name: str, write: Callable[[Path], None]) -> Path:
        """Lets `write` fill a new folder that replaces root/<name> when whole, and not before.

        Raises:
            NoSpace: when the disk is full or refuses the write; the old folder stays.
        """
        target = self.root / name
        with self.lock(), atomic_folder(target) as folder:
            write(folder)
        return target

    def folder(self, name: str) -> Path:
        """The last whole version of root/<name>.

        Raises:
            MissingStep: when there is none.
        """
        found = present(self.root / name)
        if not found.is_dir():
            raise MissingStep(f"{self.root} has no {name}: make it with {_command(name, self.root)}")
        return found

    def _place(self, kind: str, key: str) -> Path:
        return self.root / "artifacts" / kind / key


def read_release(path: Path) -> tuple[int, Release]:
    """The number and the release that current.json, or a file of releases/, tells of.

    Raises:
        OSError, KeyError, TypeError, ValueError: when it cannot be read, or is something else.
        Mismatch: when a newer version wrote it.
    """
    # Older versions counted no releases and knew no changes.
    content = {"live": None, **json.loads(path.read_text(encoding="utf-8"))}
    _refuse_newer(content, path)
    return int(content.get("number", 0)), Release(**{field.name: content[field.name] for field in fields(Release)})


def _refuse_newer(content: Mapping[str, Any], path: Path) -> None:
    written = content.get("format", FORMAT)
    if isinstance(written, int) and written > FORMAT:
        raise Mismatch(
            f"{path} has format {written}, this version reads up to {FORMAT}: a newer version wrote it; use that one"
        )


def _as_json(number: int, release: Release) -> str:
    return json.dumps({"format": FORMAT, "number": number, **asdict(release)}, indent=1) + "\n"


def artifact_key(kind: str, made_from: Mapping[str, Any]) -> str:
    """The key that `Run.write_artifact` gives: it can be known, and looked for, before anything is made."""
    return fingerprint({"kind": kind, "made_from": made_from})


def read_manifest(folder: Path, remedy: str, *, key: str | None = None) -> dict[str, Any]:
    """The manifest of a folder; its files are not looked at.

    Raises:
        CorruptArtifact: when it is missing, unreadable, or names another key; the message ends with `remedy`.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, listing = manifest.get("hash"), manifest["files"]
        if key is not None and found != key:
            raise ValueError(f"it names {found}, not {key}")
        if not isinstance(listing, dict):
            raise ValueError("files is no table")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptArtifact(f"{path} is unreadable ({error}): {remedy}") from error
    return manifest


def check_files(folder: Path, listing: Mapping[str, Mapping[str, Any]], verify: Verify) -> list[str]:
    """What is wrong with the files of `folder` by their listing {name: {bytes, sha256}}; empty when whole."""
    faults = []
    for name, expected in listing.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            faults.append(f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
        elif verify == Verify.FULL and sha256_of(path) != expected["sha256"]:
            faults.append(f"{name} has been altered")
    return faults


def listing_of(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {bytes, sha256}} of every file under `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }


def _command(kind: str, root: Path, made_from: Mapping[str, Any] | None = None) -> str:
    final = (made_from or {}).get("fit") == "final"
    command = "fit --final" if final else _MADE_BY.get(kind.split("/")[0], "quickstart")
    return f"'python cli.py {command} --run {root}'"
