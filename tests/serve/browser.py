"""A page of the service in headless Chromium, and what it asked, answered and complained about."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Response, ViewportSize, expect, sync_playwright

WIDE: ViewportSize = {"width": 1440, "height": 1000}
NARROW: ViewportSize = {"width": 360, "height": 740}
PATIENCE_MS = 60_000.0
"""A busy machine is no fault of the page."""
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium; Playwright brings none along."""
    path = next(filter(None, map(shutil.which, NAMES)))
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """One reader's look at one address.

    Attributes:
        asked: bodies of the recommendations that were asked for, in order.
        refused: the browser's own words on requests that were answered with an error, which the page tells in its own.
        complaints: other errors and warnings of the console, and scripts' exceptions.
    """

    def __init__(self, browser: Browser, address: str, *, viewport: ViewportSize = WIDE, **context: Any) -> None:
        context = {"reduced_motion": "reduce", **context}
        self.context = browser.new_context(viewport=viewport, **context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.address = address
        self.asked: list[dict[str, Any]] = []
        self._responses: list[Response] = []
        self.refused: list[str] = []
        self.complaints: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", self._response)
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog says {dialog.message}"))

    def open(self, question: str = "") -> "Visit":
        """Loads the page with a question in its address, and waits until all is there."""
        self.page.goto("about:blank")  # a new question alone would load nothing
        self.page.goto(f"{self.address}/#{question}")
        self.settle()
        return self

    def settle(self) -> None:
        """Waits until nothing is under way."""
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.page.wait_for_selector("#answer:not([aria-busy])", state="attached")
        self.page.wait_for_selector("#view-report:is([hidden], :has(.verdict), :has(.notice))", state="attached")

    def texts(self, selector: str) -> list[str]:
        """Of all elements, without white space around."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    @property
    def answer(self) -> dict[str, Any]:
        """The last one to a recommendation that was asked for."""
        return self._responses[-1].json()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends it."""
        self.context.close()

    def _console(self, message: ConsoleMessage) -> None:
        if message.text.startswith("Failed to load resource"):
            self.refused.append(message.text)
        elif message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _response(self, response: Response) -> None:
        if response.url.endswith("/v1/recommend"):
            self.asked.append(dict(response.request.post_data_json or {}))
            self._responses.append(response)
