"""The page in Chromium, against real servers on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize

from eval.frontier import Frontier, FrontierPoint, Setting
from eval.report import write_report
from eval.results import GatePoint
from eval.significance import PairedTest, Verdict
from pipeline.build_index import build_index
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import train_retriever
from recommend.service import Service
from store.artifacts import Run
from tests.eval.test_report import a_report
from tests.pipeline.shop import catalog_rows, weigh_reranker, write_rows
from tests.serve.browser import Visit, chromium
from tests.serve.conftest import service_on
from tests.serve.hosts import hosted

MARKUP = "<img src=x onerror=\"alert('caught')\"><b>"
PICTURED: ViewportSize = {"width": 1280, "height": 900}
PICTURE = Path(__file__).parents[3] / "docs" / "page.png"
GATE = [GatePoint(0.0, 0.0, 0.0), GatePoint(0.5, 0.0123, 0.008), GatePoint(1.0, -0.016, -0.016)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def service(shop, tmp_path_factory) -> Iterator[Service]:
    """The shop with a reranker that counts, and a report with a frontier."""
    root = shop.copy(tmp_path_factory.mktemp("page"))
    weigh_reranker(root, retrieval=0.001, reranker=1.0)  # the scores of an untrained model are close together
    write_report(root / "reports" / "test", a_report(frontier=a_frontier(), gate=GATE))
    found = service_on(root)
    yield found
    found.close()


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    with hosted(service) as found:
        yield found


@pytest.fixture(scope="module")
def bare_address(shop, tmp_path_factory) -> Iterator[str]:
    """A run without reranker and report, whose titles are markup."""
    folder = tmp_path_factory.mktemp("bare")
    rows = [[item_id, MARKUP + title, genre] for item_id, title, genre in catalog_rows()]
    catalog = write_rows(folder / "catalog.csv", ["item_id", "title", "genres"], rows)
    run = Run(folder / "run")
    log = RunLog(run, "test", quiet=True)
    ws = prepare(run, shop.log, catalog, users=None, config=shop.config, log=log)
    train_retriever(ws, log=log)
    build_index(ws, log=log)
    service = service_on(run.root)
    with hosted(service) as found:
        yield found
    service.close()


@pytest.fixture
def visit(browser, address) -> Iterator[Visit]:
    """The page; a complaint of its console, or a request that was refused, fails the test."""
    found = Visit(browser, address)
    yield found
    found.close()
    assert found.refused + found.complaints == []


def a_frontier() -> Frontier:
    def point(depth: int, gain: float, verdict: Verdict) -> FrontierPoint:
        test = PairedTest(
            60, 0.5 + gain, 0.5, gain, gain - 0.02, gain + 0.02, None, None, None, 0.04, 9, 3, 0.95, verdict
        )
        setting = Setting("tiny", "float32", depth, 1.0)
        return FrontierPoint(
            setting, 0.5 + gain, test, 40.0 * depth, 9.0 + depth, 12.0 + depth, 10.0 + depth, 1.0, 0.25
        )

    points = [point(3, 0.03, Verdict.HELPS), point(5, 0.01, Verdict.NO_EVIDENCE), point(8, -0.04, Verdict.HARMS)]
    return Frontier(60, 0.5, 9.0, {3: 0.7, 5: 0.75, 8: 0.8}, points)


def titles_in(visit: Visit, column: str) -> list[str]:
    return visit.texts(f"#answer .{column} > .rows .title")
