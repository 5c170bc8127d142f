"""page_first_view_ms, page_axe_serious: the page in Chromium on loopback; results in bench/results/serving.json.

python bench/page.py --run RUN [--views N] [--short]; RUN with a reranker and a report.

First view: from the start of the navigation until the recommendations of the first user stand on the page, in a fresh
browser profile each time, so that nothing comes from a cache; the server is warm. Beside it stands the first paint,
and the server's own part. axe-core looks at both tabs, in light and dark, wide and narrow; what it calls serious or
critical is counted, and so is every error of the console.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from bench.record import record
from bench.served import Served
from tests.serve.browser import NARROW, WIDE, Visit, chromium

FILE = "serving.json"
TIMES = """() => ({
    ready: performance.getEntriesByName("ready")[0].startTime,
    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
    answer: performance.getEntriesByType("resource").find((one) => one.name.endsWith("/v1/recommend")).duration,
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--short", action="store_true", help="two views, and nothing is recorded")
    args = parser.parse_args()
    with Served(args.run) as server, chromium() as browser:
        server.ready()
        views = [first_view(browser, server.url) for _ in range((2 if args.short else args.views) + 1)][1:]
        serious, complaints = looked_over(browser, server.url)
    ready = [view["ready"] for view in views]
    note(
        args,
        "page_first_view_ms",
        round(statistics.median(ready), 1),
        low=round(min(ready), 1),
        high=round(max(ready), 1),
        first_paint_ms=round(statistics.median(view["paint"] for view in views), 1),
        recommend_ms=round(statistics.median(view["answer"] for view in views), 1),
        views=len(views),
    )
    note(args, "page_axe_serious", len(serious), kinds=sorted(set(serious)), console_errors=len(complaints))


def first_view(browser: Browser, url: str) -> dict[str, float]:
    """Milliseconds since the start of the navigation, and those of the request for recommendations."""
    visit = Visit(browser, url)
    visit.open()
    visit.page.wait_for_function("performance.getEntriesByName('ready').length")
    found: dict[str, float] = visit.page.evaluate(TIMES)
    visit.close()
    return found


def looked_over(browser: Browser, url: str) -> tuple[list[str], list[str]]:
    """Names of axe-core's serious and critical findings, a place each, and what the console complained about."""
    serious, complaints = [], []
    for scheme, viewport in itertools.product(("light", "dark"), (WIDE, NARROW)):
        visit = Visit(browser, url, viewport=viewport, color_scheme=scheme)
        for tab in ("recommend", "report"):
            visit.open(f"tab={tab}")
            violations = Axe().run(visit.page).response["violations"]
            grave = [one for one in violations if one["impact"] in {"serious", "critical"}]
            serious += [one["id"] for one in grave for _ in one["nodes"]]
        complaints += visit.complaints + visit.refused
        visit.close()
    return serious, complaints


def note(args: argparse.Namespace, figure: str, value: float, **more: Any) -> None:
    """Records a figure, or only says it where it was tried on a tiny scale."""
    if args.short:
        print(json.dumps({"figure": figure, "value": value, **more, "recorded": False}))
        return
    record(FILE, figure, value, **more)


if __name__ == "__main__":
    main()
