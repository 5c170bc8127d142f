"""uvicorn behind a socket, until it is told to stop."""

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from serve.app import create_app
from serve.context import Server
from serve.limits import ServeConfig
from serve.sockets import BACKLOG, listen

KEEP_ALIVE_S = 30
POLL_S = 0.05
SWITCH_S = 0.001
"""After so long a thread that computes hands over to the event loop; Python's own 5 ms would be in every answer."""


def serve_until_told(
    make: Callable[[], Server],
    listening: socket.socket,
    *,
    started: Callable[[], None] = lambda: None,
    ends: threading.Event | None = None,
) -> None:
    """Answers requests until SIGTERM or Ctrl-C; those under way are answered before it returns.

    Args:
        make: opens what is served; called here, its Service is closed here.
        listening: as `bound` made it.
        started: called when the first request may come.
        ends: set by another thread, ends it, too; for servers that do not run in the main thread.

    Raises:
        BadInput: when another server has taken the port while this one was loading.
    """
    sys.setswitchinterval(SWITCH_S)
    server = make()
    # What is loaded stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    running = uvicorn.Server(_config(server))
    server.is_leaving = lambda: running.should_exit
    try:
        listen(listening)
        with _outlived_signal():
            asyncio.Runner(loop_factory=running.config.get_loop_factory()).run(
                _served(running, listening, started, ends or threading.Event())
            )
    finally:
        server.service.close()
        if server.keys is not None:
            server.keys.close()


@contextmanager
def _outlived_signal() -> Iterator[None]:
    """uvicorn raises a signal once more when all is answered: it must not end the process before things are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _served(
    running: uvicorn.Server, listening: socket.socket, started: Callable[[], None], ends: threading.Event
) -> None:
    async def watch() -> None:
        while not running.started:
            await asyncio.sleep(POLL_S)
        started()
        while not ends.is_set():
            await asyncio.sleep(POLL_S)
        running.should_exit = True

    watching = asyncio.create_task(watch())
    await running.serve(sockets=[listening])
    watching.cancel()


def _config(server: Server) -> uvicorn.Config:
    limits: ServeConfig = server.limits
    return uvicorn.Config(
        create_app(server),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=limits.drain_s,
    )
