"""Narrow screens, contrast, colours that stay, and the picture of the README."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.serve.browser import NARROW, WIDE, Visit
from tests.serve.conftest import service_on
from tests.serve.hosts import hosted
from tests.serve.page.conftest import PICTURE, PICTURED

pytestmark = pytest.mark.browser


def test_the_picture_of_the_readme_is_light(browser, address, tmp_path):
    """PICTURE_OF=runs/demo makes it anew, of that run."""
    path, user = tmp_path / "page.png", "u010"
    with ExitStack() as stack:
        if run := os.environ.get("PICTURE_OF"):
            service = service_on(Path(run))
            stack.callback(service.close)
            address = stack.enter_context(hosted(service))
            path, user = PICTURE, os.environ.get("PICTURE_USER", "42")
        visit = Visit(browser, address, viewport=PICTURED, device_scale_factor=2)
        visit.open(f"user={user}&rerank=always&depth=12&k=8")
        for _ in range(5):  # what a warm server takes
            visit.page.get_by_role("button", name="Recommend", exact=True).click()
            visit.settle()
        visit.page.get_by_label("an hour of the machine").fill("0.5")
        visit.page.get_by_role("heading", level=2).click()
        visit.page.screenshot(path=path, full_page=True)
        visit.close()
    with Image.open(path) as picture:
        picture.quantize(256).save(path, optimize=True)
    assert path.stat().st_size <= 300_000


@pytest.mark.parametrize("width", [320, 360])
def test_a_narrow_screen_shows_all_of_it(browser, address, width):
    visit = Visit(browser, address, viewport={"width": width, "height": 740}, has_touch=True)
    for tab in ("recommend", "report"):
        visit.open(f"user=u010&depth=8&k=5&tab={tab}")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.open("user=u010&depth=8&k=5")
    expect(visit.page.locator(".lines g.line").first).to_be_visible()
    visit.page.get_by_text("Settings", exact=True).tap()
    expect(visit.page.get_by_role("slider", name="Depth")).to_be_visible()
    visit.close()
    assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_serious(browser, address, scheme, viewport):
    visit = Visit(browser, address, viewport=viewport, color_scheme=scheme)
    for tab in ("recommend", "report"):
        visit.open(f"user=u010&depth=8&k=5&tab={tab}")
        if tab == "recommend":
            visit.page.locator(".after summary").first.click()
        assert serious(visit) == []
    visit.close()


def test_the_colours_that_were_chosen_stay(browser, address):
    visit = Visit(browser, address, color_scheme="light").open("user=u010")
    background = "getComputedStyle(document.body).backgroundColor"
    light = visit.page.evaluate(background)
    button = visit.page.get_by_role("button", name="Colours")
    button.click()
    button.click()
    dark = visit.page.evaluate(background)
    assert dark != light
    visit.page.reload()
    assert visit.page.evaluate(background) == dark
    visit.close()


def serious(visit: Visit) -> list[str]:
    """What axe-core calls serious or critical, with the first place of each."""
    found: list[dict[str, Any]] = Axe().run(visit.page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:120]} {json.dumps(one['nodes'][0]['any'])[:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
