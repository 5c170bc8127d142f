import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.torch_build import is_cpu_build

ROOT = Path(__file__).parents[2]
CUDA = 'nvidia-cudnn-cu13==9.20.0.48; sys_platform == "{}"'


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"version": "2.13.0+cpu", "requires_dist": ["sympy>=1.13.3"]}, True),
        ({"version": "2.13.0", "requires_dist": ["sympy>=1.13.3", CUDA.format(sys.platform)]}, False),
        ({"version": "2.13.0+cu130", "requires_dist": [f'triton==3.7.1; sys_platform == "{sys.platform}"']}, False),
        ({"version": "2.13.0", "requires_dist": ["sympy>=1.13.3", CUDA.format("another")]}, True),
        ({"version": "2.13.0"}, True),
    ],
    ids=[
        "says cpu",
        "asks for cuDNN here",
        "asks for triton here",
        "asks for cuDNN elsewhere only",
        "asks for nothing",
    ],
)
def test_the_build_is_read_from_what_the_wheel_asks_for(metadata, expected):
    assert is_cpu_build(metadata) is expected


def test_pips_report_is_read_from_stdin():
    report = json.dumps({"install": [{"metadata": {"name": "torch", "version": "2.13.0+cpu"}}]})
    command = [sys.executable, "-m", "scripts.torch_build"]
    found = subprocess.run(command, input=report, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "cpu\n"


@pytest.mark.parametrize(
    ("name", "faiss"), [("requirements.lock", "faiss-cpu"), ("requirements-gpu.lock", "faiss-gpu")]
)
def test_a_lock_file_pins_one_faiss_and_names_no_place(name, faiss):
    pins = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert [pin.partition("==")[0] for pin in pins if pin.startswith("faiss")] == [faiss]
    assert "torch==2.13.0" in pins
    assert [pin for pin in pins if "==" not in pin or "+" in pin or "/" in pin] == []
