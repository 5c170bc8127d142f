"""Results: one object a figure, the newest in its place, with nothing that names the machine's folders."""

import json
import sys

import bench.record
from bench.record import ROOT, command_line, record


def test_a_figure_measured_again_replaces_the_old_one_and_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "bench" / "main_job.py"), "demo"])
    record("some.json", "b", 1.0)
    record("some.json", "a", 2.0, low=1.5, high=2.5)
    record("some.json", "b", 3.0)
    found = json.loads((tmp_path / "some.json").read_text())
    assert [(entry["figure"], entry["value"]) for entry in found] == [("a", 2.0), ("b", 3.0)]
    assert (found[0]["low"], found[0]["high"]) == (1.5, 2.5)
    assert {"command", "machine", "commit", "date"} <= found[1].keys()


def test_the_command_names_places_outside_by_their_last_part(monkeypatch):
    words = [
        str(ROOT / "bench" / "main_job.py"),
        "beauty",
        "--data",
        "/some/where/beauty",
        "--judge",
        "../tools/judge.py",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == "python bench/main_job.py beauty --data beauty --judge judge.py"
