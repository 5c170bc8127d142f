"""What this machine has, and what that means."""

import os
import platform
import shutil
from pathlib import Path

import faiss
import torch

from store.assets import ASSETS, default_assets_dir, fetched
from store.errors import TandemError
from store.hardware import Precision, bfloat16_speedup, computes_bfloat16


def findings() -> list[str]:
    """One line for each thing found."""
    lines = [f"Python {platform.python_version()}, torch {torch.__version__}, FAISS {faiss.__version__}"]
    lines.append(f"processor: {os.cpu_count()} cores, {torch.get_num_threads()} used by torch")
    if torch.cuda.is_available():
        lines.append(f"GPU: {torch.cuda.get_device_name()}: models run there, in bfloat16")
    else:
        lines.append("GPU: none: models run on the processor")
    if speedup := bfloat16_speedup():
        found = f"{speedup:.2g} times as fast as float32 on this processor"
    else:
        found = "no instructions for it on this processor"
    used = "bfloat16" if computes_bfloat16(Precision.AUTO) else "float32"
    lines.append(f"bfloat16: {found}: texts are encoded and models trained in {used}")
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    lines.append(f"FAISS: {'on the GPU' if gpus else 'on the processor'}")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines.append(f"disk: {free:.0f} GB free here")
    lines += [f"asset {name}: {_state(name)}" for name in ASSETS]
    return lines


def _state(name: str) -> str:
    try:
        return f"in {fetched(name)}"
    except TandemError as error:
        return str(error) if default_assets_dir().exists() else f"get it with 'python cli.py fetch {name}'"
