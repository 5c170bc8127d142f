"""Processes of our own that begin fresh and yet soon."""

import multiprocessing
import multiprocessing.context
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running

IMPORTED = ("recommend.supervised", "recommend.service")
"""What the process that others are forked from imports, and nothing else: it has used no thread and no lock."""


def fresh_context() -> multiprocessing.context.ForkServerContext:
    """Where such processes are started.

    One that is forked from a server inherits threads and locks in the middle of whatever they do; one that begins
    with nothing spends seconds on imports. These are forked from a process that has done the imports alone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def begin_imports() -> None:
    """Starts the process that others are forked from, and does not wait for it.

    Its imports take as long as the caller's own: called before these, both are done at the same time, where the first
    process to be started would otherwise wait for them afterwards. This module imports nothing that takes long.
    """
    fresh_context()
    ensure_running()


def when_parent_ends(call: Callable[[], None]) -> None:
    """Calls once the process that started this one is gone, also where it was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        call()

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
