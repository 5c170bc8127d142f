"""A service behind a real socket of this machine, with its page, for clients from outside."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from recommend.service import Service
from serve.app import create_app
from serve.context import Server
from serve.keys import Keys
from serve.limits import ServeConfig
from serve.page_files import PAGE

PATIENCE_S = 60.0
"""A busy machine is no fault of the page."""


@contextmanager
def hosted(service: Service, *, keys: Keys | None = None) -> Iterator[str]:
    """Its address; without keys it is open to this machine. The service is left open."""
    app = create_app(Server(service, ServeConfig(time_limit_ms=int(PATIENCE_S * 1000)), keys, PAGE))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        yield _address(running)
    finally:
        running.should_exit = True
        thread.join(PATIENCE_S)


def _address(running: uvicorn.Server) -> str:
    end = time.monotonic() + PATIENCE_S
    while not running.started:
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
    host, port = running.servers[0].sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"
