"""A newer release takes over between two requests, or is refused while the old one goes on."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.change_index import remove_items
from pipeline.run_log import RunLog
from recommend.asking import Ask
from recommend.recommender import RecommendConfig
from recommend.service import Service
from serve.context import Server
from serve.limits import ServeConfig
from store.artifacts import Run
from store.releases import published, roll_back
from tests.pipeline.shop import weigh_reranker
from tests.serve.conftest import Client, Here, service_on


@pytest.fixture
def service(shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    monkeypatch.setattr("recommend.service.LOOK_S", 3600)  # the test looks for itself
    made = service_on(root)
    yield made
    made.close()


def test_what_is_published_is_served_and_what_is_under_way_ends_as_it_began(service: Service):
    before = service.serving
    assert not service.refresh()
    service.run.publish(reranker=None)
    assert service.refresh()
    assert service.serving.name != before.name
    assert service.serving.child is None
    assert service.recommend(Ask(user_id="u010")).answer.not_reranked == "this release has no reranker"
    assert not before.child.closed
    assert before.recommender.recommend(before.recommender.history_of("u010")).cost.reranked == 8


def test_a_reranker_that_stays_is_not_started_again(service: Service):
    before = service.serving
    release = service.run.release()
    service.run.publish(reranker=None)
    service.refresh()
    service.run.publish(**asdict(release))
    service.refresh()
    assert service.serving.name == before.name
    kept = service.serving.child
    service.run.publish(index=twin_of(service.run, "index", str(release.index)))
    assert service.refresh(), service.refused
    assert service.serving.child is kept
    assert service.serving.wishes is before.wishes


def test_what_is_published_while_a_release_is_opened_brings_its_own_reranker(service: Service):
    before, plan = service.serving, service._plan
    index = twin_of(service.run, "index", str(before.release.index))
    reranker = twin_of(service.run, "reranker", str(before.release.reranker))

    def configure() -> RecommendConfig:
        service.run.publish(reranker=reranker)
        return plan.configure()

    service._plan = replace(plan, configure=configure)
    service.run.publish(index=index)
    assert service.refresh(), service.refused
    assert (service.serving.release.index, service.serving.release.reranker) == (index, reranker)
    assert service.serving.child is not before.child


def test_a_release_that_lacked_something_for_a_moment_is_served_soon(service: Service, monkeypatch):
    monkeypatch.setattr("recommend.service.AGAIN_S", 0.3)
    index = twin_of(service.run, "index", str(service.serving.release.index))
    folder = service.run.root / "artifacts" / "index" / index
    away = folder.rename(folder.with_name("away"))
    service.run.publish(index=index)
    assert not service.refresh()
    assert "build-index" in service.refused
    away.rename(folder)
    assert not service.refresh()  # not at every look
    time.sleep(0.3)
    assert service.refresh()
    assert (service.refused, service.serving.release.index) == ("", index)
    assert service.put("fresh", {"title": "sol"}).state == "added"


def test_attempts_become_rarer(service: Service):
    pauses = []
    service.run.publish(index="feedfeedfeedfeed")
    for _ in range(8):
        service._try_at = 0.0
        service.refresh()
        pauses.append(round(service._try_at - time.monotonic()))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_release_that_fails_late_leaves_no_child_behind(service: Service, monkeypatch):
    children = []

    def opener(*how):
        children.append(Here(*how))
        return children[-1]

    service._plan = replace(service._plan, opener=opener)
    ledger = service.run.root / "ledger" / "ledger.json"
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_text("{")
    service.run.publish(reranker=twin_of(service.run, "reranker", str(service.serving.release.reranker)))
    assert not service.refresh()
    assert "ledger" in service.refused
    assert [child.closed for child in children] == [True]
    assert not service.serving.child.closed


def twin_of(run: Run, kind: str, key: str) -> str:
    """The same artifact under another key."""
    folder = run.root / "artifacts" / kind / key
    twin = Path(shutil.copytree(folder, folder.with_name("0123456789abcdef")))
    (twin / "manifest.json").write_text((twin / "manifest.json").read_text().replace(key, twin.name))
    return twin.name


def removed(run: Run, item_id: str) -> None:
    remove_items(Run(run.root), [item_id], log=RunLog(None, "test", quiet=True))


def test_changes_are_shown_though_the_release_is_written_anew_as_it_was(service: Service):
    removed(service.run, "i30")
    assert service.refresh()
    removed(service.run, "i31")
    service.run.publish()
    assert service.refresh()
    assert service.serving.items == 58
    service.run.publish()
    assert not service.refresh()


def test_changes_that_were_gone_back_from_are_no_longer_shown(service: Service):
    removed(service.run, "i30")
    assert service.refresh()
    assert service.serving.items == 59
    roll_back(service.run, published(service.run)[-2].number)
    assert service.refresh()
    assert service.serving.items == 60
    assert service.put("new", {"title": "sol"}).state == "added"
    assert service.serving.items == 61


@pytest.mark.parametrize(
    ("part", "told"), [("retriever", "train-retriever"), ("index", "build-index"), ("reranker", "train-reranker")]
)
def test_a_release_that_cannot_be_served_is_refused_with_the_reason(service: Service, part: str, told: str):
    client = Client(Server(service, ServeConfig(), None))
    before = service.serving
    good = service.run.release()
    service.run.publish(**{part: "feedfeedfeedfeed"})
    assert not service.refresh()
    assert service.serving is before
    assert told in service.refused
    health = client.get("/v1/health")
    assert health.status_code == 200
    assert "a newer release is refused" in health.json()["reasons"][0]
    assert "tandem_release_refused 1.0" in client.get("/metrics").text
    assert client.post("/v1/recommend", {"user_id": "u010"}).json()["release"] == before.name
    service.run.publish(**asdict(good))
    service.refresh()
    assert client.get("/v1/health").json()["reasons"] == []


def test_a_file_that_cannot_be_read_is_refused(service: Service):
    (service.run.root / "current.json").write_text("{")
    assert not service.refresh()
    assert "current.json" in service.refused
    assert service.recommend(Ask(user_id="u010")).answer.items


def test_the_same_models_of_another_run_have_the_same_name(service: Service):
    assert Run(service.run.root).release() == service.serving.release
