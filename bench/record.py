"""Figures into bench/results/*.json: one object a figure, the newest measurement in its place."""

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def record(
    file: str, figure: str, value: float, *, low: float | None = None, high: float | None = None, **more: Any
) -> None:
    """Writes one figure with the command, machine, commit and date of its measurement."""
    entry: dict[str, Any] = {"figure": figure, "value": value}
    if low is not None and high is not None:
        entry |= {"low": low, "high": high}
    entry |= {
        **more,
        "command": command_line(),
        "machine": machine(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", "-uno", "--", ".", ":!bench/results") else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = RESULTS / file
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else []
    entries = [old for old in entries if old["figure"] != figure] + [entry]
    path.write_text(json.dumps(sorted(entries, key=lambda old: old["figure"]), indent=1) + "\n")
    print(json.dumps(entry))


def machine() -> str:
    """Processor and cores, as the system tells them."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return f"{names[0] if names else platform.machine()}, {len(names) or '?'} cores"


def command_line() -> str:
    """The command that runs, with places outside of the project named by their last part alone."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    told = [Path(word).name if Path(word).is_absolute() or word.startswith("..") else word for word in sys.argv[1:]]
    return shlex.join(["python", str(script), *told])


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
