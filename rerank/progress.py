"""What a long training shows: a line on a terminal, and JSON lines in a file."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rerank.packing import Prompt


class ProgressLine:
    """One line on stderr that is written over; silent where stderr is no terminal, and in the first two seconds."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty()
        self._start = time.monotonic()
        self._last = self._start + 1.5

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._last > self._start + 1.5:
            self._stream.write("\n")

    def show(self, text: str, *, progress: float) -> None:
        """Show `text` and the time left, at most twice a second.

        Args:
            text: what to say.
            progress: in [0, 1], from which the time left is reckoned.
        """
        now = time.monotonic()
        if not self._shown or now - self._last < 0.5:
            return
        self._last = now
        left_s = (now - self._start) * (1 - progress) / max(progress, 1e-3)
        self._stream.write(f"\r\x1b[K{text}  {progress:4.0%}  about {left_s / 60:.1f} min left")
        self._stream.flush()


class JsonLines:
    """Appends one JSON object a line to a file; use it as `log`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Append `record`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def rates(prompts: Sequence[Prompt], seconds: float) -> dict[str, float]:
    """What a step of a training got through in a second."""
    items, tokens = sum(len(prompt.candidates) for prompt in prompts), sum(prompt.tokens for prompt in prompts)
    return {"items_per_second": round(items / seconds, 1), "tokens_per_second": round(tokens / seconds, 1)}
