"""Files and folders that are whole or absent, whatever happens while they are written."""

import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import NoSpace, TandemError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)

_TEMPORARY = ".tmp-"
_ASIDE = ".old-"
_BEING_WRITTEN: set[Path] = set()


def atomic_write(path: Path, content: bytes | str) -> None:
    """Puts `content` (text as UTF-8) at `path` by one rename; a kill leaves the old file or the new one.

    Raises:
        NoSpace: when the disk is full or refuses the write; the old file is untouched.
    """
    with disk_trouble_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_files(path)
        temporary = _temporary_beside(path)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Hands out an empty folder to fill, which takes the place of `target` when the block ends well.

    What stood at `target` stays readable, by `present(target)`, at every moment. Writers of the same parent
    folder must hold a lock: what other writers left half-made there is swept away.

    Raises:
        NoSpace: when the disk is full or refuses the write; what was there before is untouched.
    """
    with disk_trouble_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        temporary = _temporary_beside(target)
        temporary.mkdir()
        _BEING_WRITTEN.add(temporary)
        try:
            yield temporary
            _sync_tree(temporary)
            _swap(temporary, target)
        finally:
            _BEING_WRITTEN.discard(temporary)
            shutil.rmtree(temporary, ignore_errors=True)


def present(target: Path) -> Path:
    """Where the whole folder `target` can be read: itself, or its last version set aside by a killed swap."""
    aside = target.with_name(_ASIDE + target.name)
    # Thrice, since a swap may run between two looks.
    return next((path for path in (target, aside, target) if path.exists()), target)


@contextmanager
def disk_trouble_told(target: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk met while writing `target` into NoSpace."""
    try:
        yield
    except TandemError:
        raise
    except Exception as error:
        reason = _disk_trouble(error)
        if reason is None:
            raise
        raise NoSpace(
            f"cannot write {target}: {reason}. What was there before is untouched; "
            "make room or give another folder, and run the command again"
        ) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Asks the disk to keep a file or folder before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_beside(path: Path) -> Path:
    # The token, since a process in another container may have had our process id.
    return path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{_TEMPORARY}*"):
        if left not in _BEING_WRITTEN and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    for aside in parent.glob(f"{_ASIDE}*"):
        if parent.joinpath(aside.name.removeprefix(_ASIDE)).exists():
            shutil.rmtree(aside, ignore_errors=True)


def _sweep_files(path: Path) -> None:
    """Removes what writers of `path` that are no longer alive have left; they need hold no lock."""
    for left in path.parent.glob(f"{_TEMPORARY}{glob.escape(path.name)}-*"):
        process = left.name.split("-")[-2]
        if left.is_file() and process.isdecimal() and not _alive(int(process)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _swap(new: Path, target: Path) -> None:
    aside = target.with_name(_ASIDE + target.name)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _disk_trouble(error: BaseException) -> str | None:
    """What the disk said, when `error` or one of its causes comes from the disk."""
    if isinstance(error, OSError) and error.errno in _FULL + _REFUSED:
        return str(error)
    # Libraries written in Rust or C++ wrap the system's words in exceptions of their own.
    if any(os.strerror(code) in str(error) for code in _FULL):
        return str(error)
    cause = error.__cause__ or error.__context__
    return None if cause is None else _disk_trouble(cause)
