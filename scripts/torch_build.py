"""Tells from pip's installation report, on stdin, which build of PyTorch it would take here: prints `cpu` or `cuda`.

A CPU build either says so in its version (2.13.0+cpu) or, like the wheels for macOS, asks for no CUDA library that
applies to this machine.
"""

import json
import sys
from typing import Any

from pip._vendor.packaging.requirements import Requirement  # packaging itself is not installed yet

CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")


def is_cpu_build(metadata: dict[str, Any]) -> bool:
    """Whether a torch wheel with this metadata (`version`, `requires_dist`) is built without CUDA."""
    if metadata["version"].endswith("+cpu"):
        return True
    needs = [Requirement(line) for line in metadata.get("requires_dist", [])]
    applying = [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return not any(name.startswith(CUDA_PACKAGES) for name in applying)


if __name__ == "__main__":
    (torch,) = json.load(sys.stdin)["install"]
    print("cpu" if is_cpu_build(torch["metadata"]) else "cuda")
