import shutil
from pathlib import Path

import pytest

from pipeline.workspace import Workspace, open_workspace
from tests.pipeline.shop import Shop, weigh_reranker


@pytest.fixture(scope="session")
def weighed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The trained run with a reranker that counts; not to be changed but for its reports."""
    root = shop.copy(tmp_path_factory.mktemp("weighed"))
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    return open_workspace(root)


@pytest.fixture
def root(weighed: Workspace, tmp_path: Path) -> Path:
    """A copy of a run whose release has both stages."""
    return Path(shutil.copytree(weighed.run.root, tmp_path / "run"))
