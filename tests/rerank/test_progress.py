import io
import json
from pathlib import Path

import pytest

from rerank import progress
from rerank.progress import JsonLines, ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_sees_the_time_left_after_two_seconds(clock: list[float]) -> None:
    stream = Terminal()
    with ProgressLine(stream=stream) as line:
        clock[0] += 1
        line.show("early", progress=0.1)
        clock[0] += 59
        line.show("step 5/20", progress=0.25)
        clock[0] += 0.1
        line.show("too soon", progress=0.26)
    assert stream.getvalue() == "\r\x1b[Kstep 5/20   25%  about 3.0 min left\n"


def test_what_is_no_terminal_sees_nothing(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressLine(stream=stream) as line:
        clock[0] += 60
        line.show("step 5/20", progress=0.25)
    assert stream.getvalue() == ""


def test_json_lines_are_appended(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log({"event": "step", "loss": 1.5})
    log({"event": "end"})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "step", "loss": 1.5}, {"event": "end"}]
