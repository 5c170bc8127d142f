"""What a command tells while it works: a line on stderr for people, a JSON line in the run for later."""

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.artifacts import Run
from store.atomic import disk_trouble_told

FILE = "log.jsonl"


class RunLog:
    """Writes to stderr and to log.jsonl in the run directory.

    Args:
        run: whose log it is; None: stderr only.
        command: what is running, named in every JSON line.
        quiet: nothing on stderr.
    """

    def __init__(self, run: Run | None, command: str, *, quiet: bool = False) -> None:
        self.path: Path | None = run.root / FILE if run else None
        self.command, self.quiet = command, quiet
        self.started = time.monotonic()

    def say(self, line: str) -> None:
        """A line for people."""
        if not self.quiet:
            print(f"[{self._clock()}] {line}", file=sys.stderr, flush=True)

    def record(self, entry: Mapping[str, Any]) -> None:
        """A JSON line for the run; also said, except for the many steps of a training.

        Raises:
            NoSpace: when the disk is full or refuses the write.
        """
        if self.path is not None:
            stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": self.command, **entry}
            with disk_trouble_told(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(stamped) + "\n")
        if entry.get("event") != "step":
            self.say("  ".join(f"{key} {_short(value)}" for key, value in entry.items()))

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes:02d}:{seconds:02d}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + ")"
    return str(value)
