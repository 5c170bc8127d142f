"""The web page: files of one folder, which may load nothing from elsewhere."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What a browser lets the page do."""


class PageFiles(StaticFiles):
    """Files with the policy beside them; a browser asks each time whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = POLICY
        response.headers["cache-control"] = "no-cache"
        return response


def page_routes(app: FastAPI, folder: Path | None) -> None:
    """Puts the files of a folder at `/`; without one there is no page."""
    if folder is not None and folder.is_dir():
        app.mount("/", PageFiles(directory=folder, html=True), name="page")
