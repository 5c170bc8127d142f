"""Several processes behind one address: each has the index mapped, and all ask one reranker."""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from recommend.processes import fresh_context, when_parent_ends
from serve.sockets import SharedAddress
from store.errors import TandemError

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where the metrics of all workers lie, by the name that their library knows."""
AGAIN_S = 1.0
"""Before a worker that has ended is replaced."""
LOOK_S = 0.2
_LOG = logging.getLogger(__name__)

Work = Callable[[socket.socket, Callable[[], None]], None]
"""Serves on a socket until SIGTERM, and calls what it is given when the first request may come."""


class Workers:
    """Processes that serve; one that ends on its own is replaced.

    Args:
        work: what each does; it must be picklable, as a partial of a module's function is.
        count: how many.
        address: where clients come; a worker that takes the place of another has a socket of its own, too.
    """

    def __init__(self, work: Work, count: int, address: SharedAddress) -> None:
        self._work, self._count, self._address = work, count, address
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-metrics-")
        self._context = fresh_context()
        self._news, self._tell = self._context.Pipe(duplex=False)
        self._ended = threading.Event()

    def run(self, started: Callable[[], None]) -> None:
        """Serves until SIGTERM or Ctrl-C, then lets every process answer what it has begun.

        Args:
            started: called when every worker may be asked.

        Raises:
            TandemError: what kept a worker from its first start.
        """
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(kind, lambda *_: self._ended.set()) for kind in kinds]
        processes = [self._start() for _ in range(self._count)]
        try:
            self._await_all(processes)
            if not self._ended.is_set():
                started()
            while not self._ended.is_set():
                wait([process.sentinel for process in processes], timeout=LOOK_S)
                processes = [self._kept(process) for process in processes]
        finally:
            self._ended.set()
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)
            self._folder.cleanup()

    def _await_all(self, processes: list[BaseProcess]) -> None:
        for _ in processes:
            while not self._news.poll(LOOK_S):
                if self._ended.is_set():
                    return
                if ended := [process for process in processes if not process.is_alive()]:
                    raise TandemError(f"a worker ended with {ended[0].exitcode} before it could serve")
            error = self._news.recv()
            if error is not None:
                raise error

    def _start(self) -> BaseProcess:
        # Only the worker has it then, so that clients are not sent to one that has ended.
        with self._address.for_worker() as listening:
            process = self._context.Process(
                target=_work, args=(self._work, listening, self._folder.name, self._tell), name="worker"
            )
            process.start()
        return process

    def _kept(self, process: BaseProcess) -> BaseProcess:
        if process.is_alive() or self._ended.is_set():
            return process
        _LOG.error("worker %s ended with %s; another takes its place", process.pid, process.exitcode)
        # What it counted stays; what it merely had at that moment is gone.
        for left in Path(self._folder.name).glob(f"gauge_live*_{process.pid}.db"):
            left.unlink(missing_ok=True)
        self._ended.wait(AGAIN_S)
        return self._start()


def _work(work: Work, listening: socket.socket, folder: str, tell: Connection) -> None:
    # Before the library of metrics is imported, which looks for it then.
    os.environ[SHARED_FOLDER] = folder
    # Nobody would end it, nor answer for its reranker, where the parent was killed.
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        work(listening, lambda: tell.send(None))
    except TandemError as error:
        tell.send(error)
        raise SystemExit(error.exit_code) from None
