"""Without a GPU the figures of one are not measured, and that is no failure."""

import os
import subprocess
import sys

import pytest

from bench.record import ROOT


@pytest.mark.parametrize("what", ["rerank", "search"])
def test_without_a_gpu_a_line_says_so(what):
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), what],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stdout) == (0, "there is no GPU that PyTorch finds here: nothing was measured\n")
