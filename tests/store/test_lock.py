"""Two commands on one run wait or refuse; they never mix."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from store.artifacts import Run
from store.errors import RunBusy

HOLDER = """
import pathlib, sys, time
from store.artifacts import Run
run = Run(pathlib.Path(sys.argv[1]))
with run.lock():
    print("held", flush=True)
    sys.stdin.readline()
    run.publish(index="theirs")
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_and_told_who_holds_the_run(tmp_path, holder):
    with pytest.raises(RunBusy, match=rf"process {holder.pid} \(-c .*since 20"):
        Run(tmp_path).publish(index="ours")
    with pytest.raises(RunBusy), Run(tmp_path).lock():
        pytest.fail("two writers at once")
    holder.communicate("go\n")
    assert Run(tmp_path).release().index == "theirs"


def test_a_second_writer_that_waits_comes_after_the_first(tmp_path, holder):
    threading.Timer(0.3, lambda: (holder.stdin.write("go\n"), holder.stdin.flush())).start()
    with Run(tmp_path).lock(wait_s=20):
        assert Run(tmp_path).release().index == "theirs"


def test_who_is_at_work_does_not_keep_others_from_writing(tmp_path, holder):
    with Run(tmp_path).work():
        holder.communicate("go\n")
    assert Run(tmp_path).release().index == "theirs"


def test_who_is_at_work_waits_for_others_who_write(tmp_path, holder):
    """What took hours is not lost to somebody who holds the run for a moment."""
    threading.Timer(0.3, lambda: (holder.stdin.write("go\n"), holder.stdin.flush())).start()
    with Run(tmp_path).work():
        assert Run(tmp_path).publish(retriever="ours").index == "theirs"


def test_two_do_not_work_on_one_run(tmp_path):
    code = HOLDER.replace("run.lock()", "run.work()")
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path.cwd()}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **words) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunBusy, match=f"process {other.pid}"), Run(tmp_path).work():
            pytest.fail("two at work at once")
        assert Run(tmp_path).publish(retriever="ours").retriever == "ours"
        other.communicate("go\n")
    with Run(tmp_path).work():
        assert Run(tmp_path).release().index == "theirs"


def test_waiting_ends(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(RunBusy), Run(tmp_path).lock(wait_s=0.2):
        pass
    assert 0.2 <= time.monotonic() - began < 5


def test_a_killed_holder_lets_go(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert Run(tmp_path).publish(index="ours").index == "ours"


def test_reading_needs_no_lock(tmp_path, holder):
    assert Run(tmp_path).release().index is None


def test_the_same_process_may_hold_it_twice_and_lets_go_at_the_end(tmp_path):
    run = Run(tmp_path)
    with run.lock():
        with Run(tmp_path / ".").lock():
            pass
        run.publish(index="a")
        assert subprocess.run(busy(tmp_path), check=False, cwd=Path.cwd()).returncode == 7
    assert subprocess.run(busy(tmp_path), check=False, cwd=Path.cwd()).returncode == 0


def test_an_exception_lets_go(tmp_path):
    with pytest.raises(ValueError, match="x"), Run(tmp_path).lock():
        raise ValueError("x")
    assert subprocess.run(busy(tmp_path), check=False, cwd=Path.cwd()).returncode == 0


def busy(root: Path) -> list[str]:
    code = """
import pathlib, sys
from store.artifacts import Run
from store.errors import RunBusy
try:
    with Run(pathlib.Path(sys.argv[1])).lock():
        pass
except RunBusy as error:
    sys.exit(error.exit_code)
"""
    return [sys.executable, "-c", code, str(root)]
