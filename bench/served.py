"""`python cli.py serve` as a process, and load on it from another."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.record import ROOT


class Served:
    """A server on a free port, without keys; ended when the block is left.

    Args:
        run: the run directory.
        settings: for --set.
        workers: processes that answer.
    """

    def __init__(self, run: Path, *settings: str, workers: int = 1) -> None:
        chosen = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "cli.py", "serve", "--run", str(run), "--port", "0", "--no-auth", *chosen]
        command += ["--workers", str(workers)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self._log, stdout=subprocess.DEVNULL)
        self.url = self._await_url()
        self.up_seconds = time.perf_counter() - self.started

    def ready(self, seconds: float = 300) -> None:
        """Waits until the reranker answers, too."""
        until = time.perf_counter() + seconds
        while self.get("/v1/ready")[0] != 200:
            assert time.perf_counter() < until, "the reranker does not become ready"
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return request(self.url + path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON."""
        status, content = request(self.url + path, json.dumps(body).encode())
        return status, json.loads(content)

    def load(self, bodies: list[list[Any]], **options: Any) -> dict[str, Any]:
        """What `bench.load` says of such requests."""
        return load(self.url, bodies, **options)

    def resident_mb(self) -> float:
        """Memory of the server and its children that is theirs alone, with their part of what they share."""
        return sum(_proportional_kb(process) for process in [self.process.pid, *_descendants(self.process.pid)]) / 1024

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        self._log.close()

    def log(self) -> str:
        """What it has said so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def _await_url(self) -> str:
        while not (found := re.search(r"at (http://\S+:\d+) ", self.log())):
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        return found[1]


@contextmanager
def scratch(run: Path) -> Iterator[Path]:
    """A copy of a run that may be written to; what no command changes is linked, not copied."""
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".bench-") as folder:
        copied = Path(folder) / run.name
        for path in run.rglob("*"):
            place = copied / path.relative_to(run)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if "artifacts" in path.relative_to(run).parts:
                os.link(path, place)
            else:
                shutil.copy2(path, place)
        yield copied


def request(url: str, body: bytes | None = None, *, method: str | None = None) -> tuple[int, bytes]:
    """Status and body of one request."""
    headers = {"content-type": "application/json"} if body is not None else {}
    asked = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def load(url: str, bodies: list[list[Any]], **options: Any) -> dict[str, Any]:
    """Runs `bench.load` in a process of its own."""
    with started_load(url, bodies, **options) as shooting:
        out, _ = shooting.communicate()
    found: dict[str, Any] = json.loads(out)
    return found


def started_load(url: str, bodies: list[list[Any]], **options: Any) -> subprocess.Popen[str]:
    """The same, still under way; its output is the JSON."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(bodies, file)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.load", "--url", url, "--bodies", file.name, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _descendants(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _proportional_kb(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(lines.partition("Pss:")[2].split()[0])
