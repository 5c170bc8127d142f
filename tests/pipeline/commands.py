"""Commands of `cli.py` in processes of their own, forked from one that has done the imports and nothing else.

A process from nothing spends seconds on imports. What is forked here has used no thread, no lock and no random
number yet, so it behaves as a fresh one; faults of disk and power can be put in before the command starts.
"""

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from store.errors import TandemError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.pipeline.everything"])


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        kill_at_sync: the process is killed with -9 at this call of fsync, from 1; 0: never.
        file_limit: no file may grow beyond so many bytes, as on a disk that fills up; None: no limit.
        missing: packages that cannot be imported.
    """

    kill_at_sync: int = 0
    file_limit: int | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """How a command ended; `syncs` counts its calls of fsync."""

    code: int
    out: str
    err: str
    syncs: int


@dataclass
class Command:
    """A command under way."""

    process: multiprocessing.process.BaseProcess
    out: Connection
    err: Connection
    syncs: Connection
    seen: dict[str, str] = field(default_factory=dict)

    def wait(self) -> Done:
        err, out = _all(self.err), _all(self.out)
        counts = _all(self.syncs)
        self.process.join(120)
        code = self.process.exitcode
        assert code is not None, "the command did not end"
        self.process.close()
        return Done(code, out, err, json.loads(counts) if counts else 0)

    def wait_for(self, text: str) -> None:
        """Returns when `text` has been said on stderr."""
        said = ""
        while text not in said:
            part = os.read(self.err.fileno(), 4096).decode()
            assert part, f"it ended before it said {text!r}: {said}"
            said += part

    def kill(self) -> None:
        self.process.kill()


def start(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None, faults: Faults | None = None) -> Command:
    """Starts `python cli.py ARGUMENTS` in the folder `cwd`."""
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(3)]
    told = [str(argument) for argument in arguments]
    process = CONTEXT.Process(
        target=_run, args=(told, str(cwd), dict(env or {}), faults or Faults(), *(write for _, write in pipes))
    )
    process.start()
    for _, write in pipes:
        write.close()
    return Command(process, *(read for read, _ in pipes))


def run(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None, faults: Faults | None = None) -> Done:
    """Runs `python cli.py ARGUMENTS` to its end."""
    return start(*arguments, cwd=cwd, env=env, faults=faults).wait()


def refused(done: Done, error: type[TandemError], *patterns: str) -> str:
    """Asserts that a command ended as `error` does: its exit code, one message without a traceback, every pattern."""
    assert done.code == error.exit_code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    told = done.err[done.err.rindex("tandem: ") :]
    for pattern in patterns:
        assert re.search(pattern, told), f"{pattern!r} is not in {told}"
    return told


def _all(pipe: Connection) -> str:
    parts = []
    while part := os.read(pipe.fileno(), 65536):
        parts.append(part)
    pipe.close()
    return b"".join(parts).decode()


def _run(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    faults: Faults,
    out: Connection,
    err: Connection,
    syncs: Connection,
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = ["cli.py", *arguments]
    if faults.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_limit, resource.RLIM_INFINITY))
    for package in faults.missing:
        sys.modules[package] = None
    sync, count = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == faults.kill_at_sync:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = counted
    import cli

    try:
        cli.main()
    finally:
        os.write(syncs.fileno(), str(count).encode())
        sys.stdout.flush()
        sys.stderr.flush()
