import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.trackers import Curves, RemainingTime, TrackerConfig, TrackerKind, left_in_words, told_to, tracker
from store.errors import BadInput, MissingPackage, NoSpace

ROOT = Path(__file__).parents[2]
ENTRIES = [
    {"stage": "towers", "event": "step", "step": 10, "loss": 5.5},
    {"stage": "towers", "epoch": 1, "loss": 4.5, "validation_ndcg@10": 0.25, "best": True},
    {"stage": "towers", "epoch": 2, "loss": 3.5, "validation_ndcg@10": 0.5, "stopped": "patience"},
    {"stage": "fusion", "weights": {"towers": 0.5, "text": 1.5}},
]
CURVES = {
    "towers/step/loss": [(10, 5.5)],
    "towers/epoch/loss": [(1, 4.5), (2, 3.5)],
    "towers/epoch/validation_ndcg@10": [(1, 0.25), (2, 0.5)],
    "fusion/weights/towers": [(1, 0.5)],
    "fusion/weights/text": [(1, 1.5)],
}
SETTINGS = {"retriever": {"train": {"learning_rate": 0.002}}}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}: python -m pip install {package}")


def test_entries_become_curves():
    curves, found = Curves(), {}
    for entry in ENTRIES:
        group, place, values = curves.of(entry)
        for name, value in values.items():
            found.setdefault(f"{group}/{name}", []).append((place, value))
    assert found == CURVES


def test_the_axis_is_the_finest_there_is_and_entries_without_one_are_counted():
    curves = Curves()
    assert curves.of({"stage": "finetune", "round": 2, "loss": 0.5}) == ("finetune/round", 2, {"loss": 0.5})
    assert curves.of({"stage": "towers", "epoch": 2, "step": 7}) == ("towers/step", 7, {"epoch": 2})
    assert [curves.of({"event": "saved", "bytes": size}) for size in (7, 9)] == [
        ("saved", 1, {"bytes": 7}),
        ("saved", 2, {"bytes": 9}),
    ]
    assert curves.of({"text": "no number"}) == ("log", 1, {})


def test_every_log_is_told_in_order():
    told = []
    told_to(lambda entry: told.append((1, entry)), lambda entry: told.append((2, entry)))({"loss": 1.0})
    assert told == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]


def test_no_tracker_writes_nothing(tmp_path):
    with tracker(TrackerConfig(), tmp_path, name="retriever", settings=SETTINGS) as log:
        log(ENTRIES[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [TrackerKind.TENSORBOARD, TrackerKind.WANDB])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, kind):
    for name in ("torch.utils.tensorboard", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    opened = tracker(TrackerConfig(tracker=kind), tmp_path, name="retriever", settings=SETTINGS)
    with pytest.raises(MissingPackage, match=f"python -m pip install {kind}") as refused, opened:
        pass
    assert refused.value.exit_code == 9


@needs("tensorboard")
def test_tensorboard_reads_back_what_was_told(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracker(TrackerConfig(tracker="tensorboard"), tmp_path, name="retriever", settings=SETTINGS) as log:
        for entry in ENTRIES:
            log(entry)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "retriever")).Reload()
    tags = events.Tags()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    assert found == CURVES
    (settings,) = events.Tensors("settings/text_summary")
    assert b"retriever.train.learning_rate = 0.002" in settings.tensor_proto.string_val[0]


@needs("tensorboard")
def test_a_disk_that_refuses_is_told_as_such(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    opened = tracker(TrackerConfig(tracker="tensorboard"), tmp_path, name="retriever", settings=SETTINGS)
    with pytest.raises(NoSpace), opened:
        pass


def wandb_records(folder: Path) -> list:
    """What an offline run has kept: a LevelDB log of protobuf records, in one block as long as it is below 32 KB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, place, records = file.read_bytes(), 7, []
    assert len(content) < 32_768
    while place < len(content):
        _, length, _ = struct.unpack("<IHB", content[place : place + 7])
        records.append(Record.FromString(content[place + 7 : place + 7 + length]))
        place += 7 + length
    return records


WANDB_SCRIPT = """
import sys, json
from pathlib import Path
from retrieval.trackers import TrackerConfig, tracker
folder, entries, settings = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with tracker(TrackerConfig(tracker="wandb"), folder, name="retriever", settings=settings) as log:
    for entry in entries:
        log(entry)
"""


def run_wandb(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", WANDB_SCRIPT, str(folder), json.dumps(ENTRIES), json.dumps(SETTINGS)],
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(folder), "WANDB_SILENT": "true", **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs("wandb")
def test_weights_and_biases_keeps_what_was_told(tmp_path):
    done = run_wandb(tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    found: dict[str, list] = {}
    axes = {}
    for record in wandb_records(tmp_path):
        if record.HasField("metric") and record.metric.glob_name:
            axes[record.metric.glob_name] = record.metric.step_metric
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if not name.startswith("_") and not name.endswith("/at"):
                found.setdefault(name, []).append((row[axes[name_of_axis(name, axes)]], value))
    assert found == CURVES
    (run,) = (record.run for record in wandb_records(tmp_path) if record.HasField("run"))
    kept = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert kept["retriever"] == SETTINGS["retriever"]
    assert (run.project, run.display_name) == ("tandem", "retriever")


def name_of_axis(name: str, axes: dict[str, str]) -> str:
    (axis,) = (glob for glob in axes if name.startswith(glob.removesuffix("*")))
    return axis


@needs("wandb")
def test_weights_and_biases_without_a_key_is_refused_and_does_not_ask(tmp_path):
    failed = run_wandb(tmp_path)
    assert failed.returncode == 1
    assert f"{BadInput.__name__}: Weights & Biases has no API key here" in failed.stderr
    assert "WANDB_MODE=offline" in failed.stderr


@pytest.mark.parametrize(
    ("done", "planned", "seconds", "words"),
    [
        (1, 2, 3, "about 10 s left"),
        (10, 20, 41, "about 50 s left"),
        (30, 60, 60, "about 60 s left"),
        (100, 300, 60, "about 2 min left"),
        (100, 301, 60, "about 3 min left"),
        (1, 60, 60, "about 59 min left"),
        (1, 125, 60, "about 2 h 5 min left"),
        (1, 118, 60, "about 2 h left"),
        (8, 8, 60, "about 10 s left"),
    ],
)
def test_the_time_left_in_words(done, planned, seconds, words):
    assert left_in_words(done, planned, seconds) == words


def test_the_time_left_is_said_every_ten_seconds_at_most():
    now, said = 100.0, []
    remaining = RemainingTime(60, said.append, clock=lambda: now)
    for step in range(1, 61):
        now += 2.0
        remaining.at(step, f"step {step}")
    # 2 s a step: after 5 steps 55 are left, 110 s; after 55 steps 5 are, 10 s.
    assert len(said) == 12
    assert said[0] == "step 5: about 2 min left"
    assert said[6] == "step 35: about 50 s left"
    assert said[-1] == "step 60: about 10 s left"
