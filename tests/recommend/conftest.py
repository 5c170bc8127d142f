import pytest

from pipeline.workspace import open_workspace
from recommend.recommender import Recommender
from recommend.release import Stages, load_stages
from tests.recommend.by_title import CONFIG, weighed


@pytest.fixture(scope="module")
def stages(shop) -> Stages:
    run = open_workspace(shop.run).run
    return load_stages(run, run.release())


@pytest.fixture
def two_stages(stages) -> Recommender:
    return Recommender(weighed(stages, retrieval=0.0, reranker=1.0), CONFIG)
