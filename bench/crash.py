"""An index whose process is killed with -9 between two writes, or in the middle of one; what a fresh process finds.

A child runs the steps of a script on a run and acknowledges each on a pipe. At its n-th change of the disk it is
killed; a write is cut in half first. Another process then opens the run: it must find what was acknowledged, with or
without the step that was under way, and whole; and it must be able to go on.
"""

import json
import multiprocessing
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import Rows, Scores
from index.faiss_index import FlatIndex
from index.published import PublishedIndex
from store.artifacts import Release, Run, Verify, artifact_key
from store.releases import prune

# Children come from a process that has imported all this and nothing else: a start costs milliseconds, not seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bench.crash"])

ITEMS, DIMENSION, AT_ONCE = 60, 8, 4
SCRIPTS: dict[str, Sequence[str]] = {
    "build": ["build"] * 4,
    "add": ["add"] * 12,
    "remove": ["add", "update", *["remove"] * 10],
    "compact": ["add", "remove", "compact", "update", "compact", "add", "compact"],
    "publish": ["publish"] * 10,
}
"""What is struck → the steps of its script, among which only those of that name are struck."""
CALLS = ("fsync", "pwrite", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate")
"""Functions of `os` that change the disk; writes to files opened by pathlib are counted, too."""

State = dict[int, Scores]
"""Item row → its vector."""


@dataclass(frozen=True)
class Outcome:
    """How one child ended.

    Attributes:
        acknowledged: steps that it had finished and said so.
        calls: changes of the disk in the steps that could be struck; 0 where it was killed.
        fault: what a fresh process found wrong; empty where all was well.
    """

    killed: bool
    acknowledged: int
    calls: int
    fault: str


def prepare(root: Path) -> None:
    """Makes a run that serves one index and has another one ready."""
    for base in (1, 0):
        _build(Run(root), base)


def strike(template: Path, root: Path, struck: str, *, kill_at: int) -> Outcome:
    """Copies the run `template` to `root` and runs the script of `struck` on it.

    Args:
        kill_at: the change of the disk at which the child is killed, from 1; 0: never.
    """
    shutil.copytree(template, root)
    code, said = _child(_run_script, str(root), struck, kill_at)
    acknowledged = sum(line == "done" for line in said)
    calls = next((line for line in said if isinstance(line, int)), 0)
    if code not in (0, -signal.SIGKILL):
        fault = f"the child ended with {code}: {said}"
    else:
        code_of_check, found = _child(_check, str(root), struck, acknowledged)
        fault = "" if (code_of_check, found) == (0, ["whole"]) else f"{code_of_check}: {found}"
    shutil.rmtree(root)
    return Outcome(code == -signal.SIGKILL, acknowledged, calls, fault)


def states(script: Sequence[str]) -> list[tuple[State, int]]:
    """The vectors by row and the number of rows allotted, before the first step and after each."""
    state, allotted = dict(enumerate(base_vectors(0))), ITEMS
    found = [(dict(state), allotted)]
    for number, step in enumerate(script, 1):
        if step in ("build", "publish"):
            state, allotted = dict(enumerate(base_vectors(_base_of(step, number)))), ITEMS
        elif step == "add":
            state |= zip(range(allotted, allotted + AT_ONCE), more_vectors(number), strict=True)
            allotted += AT_ONCE
        elif step == "update":
            state |= zip(_some(state, number).tolist(), more_vectors(number), strict=True)
        elif step == "remove":
            for row in _some(state, number).tolist():
                del state[row]
        found.append((dict(state), allotted))
    return found


def base_vectors(base: int) -> Scores:
    """Those of one of the indexes that a script builds."""
    return np.random.default_rng(base).standard_normal((ITEMS, DIMENSION)).astype(np.float32)


def more_vectors(step: int) -> Scores:
    """Those that one step adds."""
    return np.random.default_rng(1000 + step).standard_normal((AT_ONCE, DIMENSION)).astype(np.float32)


def _some(state: State, step: int) -> Rows:
    return np.random.default_rng(step).permutation(np.array(sorted(state)))[:AT_ONCE]


def _base_of(step: str, number: int) -> int:
    return 1 + number if step == "build" else number % 2


def _made_from(base: int) -> dict[str, Any]:
    return {"base": base}


def _build(run: Run, base: int) -> Release:
    index = FlatIndex(base_vectors(base))
    key = run.write_artifact("index", _made_from(base), lambda folder: index.save(folder, retriever="r", catalog="c"))
    return run.publish(index=key, live=None)


def _do(run: Run, step: str, number: int, before: State) -> None:
    if step == "build":
        _build(run, _base_of(step, number))
        return
    if step == "publish":
        run.publish(index=artifact_key("index", _made_from(_base_of(step, number))), live=None)
        prune(run)
        return
    index = PublishedIndex(run)
    actions: dict[str, Callable[[], object]] = {
        "add": lambda: index.add(more_vectors(number)),
        "update": lambda: index.update(_some(before, number), more_vectors(number)),
        "remove": lambda: index.remove(_some(before, number)),
        "compact": index.compact,
    }
    actions[step]()


# --- in processes of their own


def _child(work: Callable[..., None], *arguments: object) -> tuple[int, list[Any]]:
    """The exit code of `work` in a child, and what it said on its pipe, a JSON value a line."""
    read, write = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_told, args=(write, work, *arguments))
    process.start()
    write.close()
    parts = []
    while part := os.read(read.fileno(), 65536):
        parts.append(part)
    read.close()
    process.join()
    code = process.exitcode
    assert code is not None
    process.close()
    return code, [json.loads(line) for line in b"".join(parts).splitlines()]


def _told(pipe: Connection, work: Callable[..., None], *arguments: object) -> None:
    def tell(value: object) -> None:
        os.write(pipe.fileno(), json.dumps(value).encode() + b"\n")

    try:
        work(tell, *arguments)
    except Exception:
        tell(traceback.format_exc())
        raise SystemExit(1) from None


def _run_script(tell: Callable[[object], None], root: str, struck: str, kill_at: int) -> None:
    run, script = Run(Path(root)), SCRIPTS[struck]
    told, calls = states(script), _Calls(kill_at)
    for number, step in enumerate(script, 1):
        with calls.counted() if step == struck else calls.unseen():
            _do(run, step, number, told[number - 1][0])
        tell("done")
    tell(calls.count)


def _check(tell: Callable[[object], None], root: str, struck: str, acknowledged: int) -> None:
    run = Run(Path(root))
    found = PublishedIndex(run, verify=Verify.FULL).index
    possible = states(SCRIPTS[struck])[acknowledged : acknowledged + 2]
    held = [_holds(found, *state) for state in possible]
    if not any(held):
        tell(f"after {acknowledged} steps: rows {found.live_rows.tolist()} of {len(found)}")
        return
    # A new writer cleans up behind the killed one and goes on.
    new = PublishedIndex(run).add(more_vectors(0))
    state, allotted = possible[held.index(True)]
    after = PublishedIndex(run, verify=Verify.FULL).index
    grown = state | dict(zip(new.tolist(), more_vectors(0), strict=True))
    tell("whole" if _holds(after, grown, allotted + AT_ONCE) else f"{struck}: it could not go on")


def _holds(index: Any, state: State, allotted: int) -> bool:
    rows = np.array(sorted(state), dtype=np.int64)
    if len(index) != allotted or not np.array_equal(index.live_rows, rows):
        return False
    return np.array_equal(index.vectors(rows), np.stack([state[row] for row in rows.tolist()]))


class _Calls:
    """Counts changes of the disk, and kills this process at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at, self.count, self._counting = kill_at, 0, False
        for name in CALLS:
            setattr(os, name, self._spied(getattr(os, name), halved=name == "pwrite"))
        opened = Path.open

        def spied_open(path: Path, mode: str = "r", *more: Any, **how: Any) -> Any:
            file = opened(path, mode, *more, **how)
            return _Spied(file, self) if "w" in mode else file

        Path.open = spied_open  # type: ignore[method-assign, assignment]

    @contextmanager
    def counted(self) -> Iterator[None]:
        self._counting = True
        yield
        self._counting = False

    @contextmanager
    def unseen(self) -> Iterator[None]:
        yield

    def comes(self) -> bool:
        """Counts one call; whether it is the one."""
        self.count += self._counting
        return self._counting and self.count == self.kill_at

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _spied(self, call: Callable[..., Any], *, halved: bool) -> Callable[..., Any]:
        def spied(first: Any, *more: Any, **how: Any) -> Any:
            if self.comes():
                if halved:
                    call(first, more[0][: len(more[0]) // 2], *more[1:])
                self.kill()
            return call(first, *more, **how)

        return spied


class _Spied:
    """A file whose writes are counted; the one that is struck is cut in half."""

    def __init__(self, file: Any, calls: _Calls) -> None:
        self._file, self._calls = file, calls

    def write(self, content: Any) -> Any:
        if self._calls.comes():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            self._calls.kill()
        return self._file.write(content)

    def __enter__(self) -> "_Spied":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
