"""Renews a lock file: pip resolves pyproject.toml for an empty environment, and every package of the closure is pinned.

    .venv/bin/python -m scripts.lock cpu     # requirements.lock
    .venv/bin/python -m scripts.lock gpu     # requirements-gpu.lock, held to the pins of requirements.lock
    .venv/bin/python -m scripts.lock cpu keep    # what is pinned stays as it is; only what is missing is added

Nothing is installed and, since pip reads the metadata alone, little is downloaded. Run it on Linux x86-64 with the
oldest Python that pyproject.toml allows.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from scripts.torch_build import is_cpu_build

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
LOCKS = {"cpu": ROOT / "requirements.lock", "gpu": ROOT / "requirements-gpu.lock"}
HEADERS = {
    "cpu": """\
# Every package that Tandem and its tests need, pinned; for machines without an NVIDIA GPU.
# Made by scripts/lock.py from pyproject.toml (dependencies and the dev group): what pip freeze prints
# in a fresh environment of Python 3.11, local version tags left out.
# Renew it with: .venv/bin/python -m scripts.lock cpu && .venv/bin/python -m scripts.lock gpu
# Where PyTorch comes from is decided by scripts/setup.sh.
""",
    "gpu": """\
# The same pins as in requirements.lock, for Linux x86-64 with an NVIDIA GPU: the CUDA build of PyTorch, and
# faiss-gpu in place of faiss-cpu. Both ship the folder faiss/: never install them into one environment.
# The packages that end in -cu12 are the CUDA 12 libraries that faiss-gpu loads beside PyTorch's own CUDA 13.
# Made by scripts/lock.py from pyproject.toml. Renew it, after requirements.lock, with:
# .venv/bin/python -m scripts.lock gpu
""",
}
WAY_OUT = {
    "cpu": "pip offers a CUDA build of torch: set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu",
    "gpu": "pip's settings offer a CPU build of torch: set PIP_FIND_LINKS= and PIP_CONFIG_FILE=/dev/null",
}


def wanted(kind: str) -> list[str]:
    """The direct requirements of pyproject.toml, with the FAISS that fits the machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct: list[str] = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    return [line.replace("faiss-cpu", "faiss-gpu") if kind == "gpu" else line for line in direct]


def resolve(requirements: list[str], constraints: list[str]) -> list[dict[str, Any]]:
    """pip's installation report for an empty environment: one entry for each package of the closure."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "constraints.txt"
        constraint_file.write_text("\n".join(constraints) + "\n")
        command = [*pip, "-qq", "--report", "-", "-c", str(constraint_file), *requirements]
        found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    packages: list[dict[str, Any]] = json.loads(found.stdout)["install"]
    return packages


def pins(packages: list[dict[str, Any]]) -> list[str]:
    """Sorted `name==version` lines, names normalised (PEP 503), local version tags left out."""
    named = [(package["metadata"]["name"], package["metadata"]["version"]) for package in packages]
    return sorted(f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.partition('+')[0]}" for name, version in named)


def main(kind: str, *, keep: bool = False) -> None:
    """Writes one lock file, or says why the PyTorch that pip offers is not the right one.

    Args:
        keep: hold to what the file pins now.
    """
    constraints = [TORCH]
    if kind == "gpu" or keep:
        pinned = [line for line in LOCKS["cpu"].read_text().splitlines() if not line.startswith(("#", "faiss-"))]
        constraints += [line for line in pinned if line != TORCH]
    packages = resolve(wanted(kind), constraints)
    (torch,) = (package for package in packages if package["metadata"]["name"] == "torch")
    if is_cpu_build(torch["metadata"]) != (kind == "cpu"):
        sys.exit(f"lock: {WAY_OUT[kind]}")
    lines = pins(packages)
    LOCKS[kind].write_text(HEADERS[kind] + "\n".join(lines) + "\n")
    print(f"{LOCKS[kind].name}: {len(lines)} packages")


if __name__ == "__main__":
    if sys.argv[1:2] not in [[kind] for kind in LOCKS] or sys.argv[2:] not in ([], ["keep"]):
        sys.exit("usage: python -m scripts.lock cpu|gpu [keep]")
    main(sys.argv[1], keep=sys.argv[2:] == ["keep"])
