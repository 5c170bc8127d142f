"""What every test relies on: a quiet, offline, single-threaded environment, and skips that give their reason."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.pipeline.shop import Shop

# Set before numpy or torch is imported: thread pools read these once. On a shared machine one thread is fastest for
# the tiny models of the tests.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

# A busy machine is no fault of the code: how long an example takes decides nothing.
settings.register_profile("tandem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")


def no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs CUDA, which PyTorch does not find here"


def no_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return None if any(map(shutil.which, names)) else f"needs Chromium, none of {', '.join(names)} is here"


LACKS = {"gpu": no_gpu, "browser": no_browser}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, lack in LACKS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := lack()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A run with everything made, on planted data and a tiny model; tests copy it before they change it."""
    from tests.pipeline.shop import make_shop

    return make_shop(tmp_path_factory.mktemp("shop"))
