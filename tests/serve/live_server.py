"""`python cli.py serve` in a process of its own, on a port of this machine."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.pipeline.commands import Command, start


class LiveServer:
    """Started when made; answers when `ready`."""

    def __init__(self, run: Path, *options: str, port: int = 0) -> None:
        self.command: Command = start("serve", "--run", run, "--port", str(port), *options, cwd=run.parent)
        self.said = ""
        self._spoke = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = self.wait_for(r"at (http://[\d.]+:\d+)")
        self.client = httpx2.Client(base_url=self.url, timeout=120)

    def wait_for(self, pattern: str, seconds: float = 240) -> str:
        """The first group of a pattern that is said on stderr."""
        until = time.monotonic() + seconds
        with self._spoke:
            while not (found := re.search(pattern, self.said)):
                assert self._spoke.wait(until - time.monotonic()), f"not said within {seconds} s: {self.said}"
        return found[1] if found.groups() else found[0]

    def ready(self) -> None:
        """Waits until the reranker answers, too."""
        until = time.monotonic() + 240
        while self.client.get("/v1/ready").status_code != 200:
            assert time.monotonic() < until, self.said
            time.sleep(0.05)

    def recommend(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/recommend", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]

    def kill(self) -> None:
        self.command.process.kill()
        self.command.process.join(60)

    def stop(self) -> int | None:
        assert self.command.process.pid is not None
        os.kill(self.command.process.pid, signal.SIGTERM)
        self.command.process.join(120)
        return self.command.process.exitcode

    def __enter__(self) -> "LiveServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def _listen(self) -> None:
        while part := os.read(self.command.err.fileno(), 65536):
            with self._spoke:
                self.said += part.decode()
                self._spoke.notify_all()
        with self._spoke:
            self.said += "\nthe server has ended"
            self._spoke.notify_all()
