"""One writer at a time for a folder."""

import fcntl
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.atomic import disk_trouble_told
from store.errors import RunBusy

_POLL_S = 0.05
_MUTEX = threading.Lock()


@dataclass
class _Held:
    descriptor: int
    times: int = 0


_HELD: dict[tuple[int, Path], _Held] = {}
"""What this process holds, and how many times over; with the process id, since a fork holds nothing."""


@contextmanager
def writer_lock(folder: Path, *, wait_s: float = 0.0, name: str = ".lock") -> Iterator[None]:
    """Holds `folder` against writers in other processes; the system lets go when the process dies.

    The same process may hold it several times over, also from several threads.

    Args:
        name: of the lock file; locks of different names know nothing of each other.

    Raises:
        RunBusy: when another process still holds it after `wait_s` seconds; the message names it.
        NoSpace: when the lock file cannot be made.
    """
    key = (os.getpid(), folder.resolve() / name)
    with _MUTEX:
        if key not in _HELD:
            _HELD[key] = _Held(_acquire(folder, folder / name, wait_s))
        _HELD[key].times += 1
    try:
        yield
    finally:
        with _MUTEX:
            _HELD[key].times -= 1
            if not _HELD[key].times:
                _release(_HELD.pop(key).descriptor)


def _acquire(folder: Path, path: Path, wait_s: float) -> int:
    with disk_trouble_told(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + wait_s
        try:
            while not _try(descriptor):
                if time.monotonic() >= deadline:
                    raise RunBusy(_who(folder, path))
                time.sleep(_POLL_S)
            holder = {"pid": os.getpid(), "command": shlex.join(sys.argv), "since": _now()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def holds(folder: Path, *, name: str = ".lock") -> bool:
    """Whether this process holds that lock."""
    return (os.getpid(), folder.resolve() / name) in _HELD


def _release(descriptor: int) -> None:
    # The file stays: to unlink it would let two processes lock two files of one name.
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _who(folder: Path, path: Path) -> str:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
        by = f"process {holder['pid']} ({holder['command']}), since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        by = "another process"
    return f"{folder} is being written by {by}: run this command again when that one has ended"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
