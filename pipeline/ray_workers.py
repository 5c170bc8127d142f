"""Ray: workers on this machine or a cluster; the only file that imports it."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from pipeline.engine import Made, Part
from store.errors import BadInput, MissingPackage, TandemError, Unreachable

ROOT = Path(__file__).parents[1]

TIMEOUT_S = 20.0
"""How long a cluster is given to answer. Ray itself would wait two minutes and then end the process."""

OBJECT_STORE_BYTES = 200 * 2**20
"""Memory of a Ray of this machine for what lies between processes: parts and results, which are small."""

STARTS = 3
"""How often its start is tried."""

LIVES = 2
"""How often a worker that dies is replaced before the work is given up."""


class Worker(Generic[Part, Made]):
    """A process that makes parts."""

    def __init__(self, prepare: Callable[[], Callable[[Part], Made]]) -> None:
        self._prepare = prepare

    @cached_property
    def _make(self) -> Callable[[Part], Made]:
        # With the first part and not before: what fails in a constructor, Ray tells as text only.
        return self._prepare()

    def make(self, part: Part) -> Made:
        """What is made of one part."""
        return self._make(part)


def made_by_ray(
    prepare: Callable[[], Callable[[Part], Made]], parts: Sequence[Part], *, address: str, workers: int
) -> Iterator[Made]:
    """See Engine.made."""
    with _connected(address, workers) as ray:
        from ray.util import ActorPool

        count = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(parts))
        actor = ray.remote(num_cpus=1, max_restarts=LIVES, max_task_retries=LIVES)(Worker)
        pool = ActorPool([actor.remote(prepare) for _ in range(count)])
        try:
            yield from pool.map(lambda worker, part: worker.make.remote(part), list(parts))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TandemError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().partition("\n")[0]
            raise Unreachable(
                f"Ray has lost a worker {LIVES + 1} times ({reason}): if memory was short, ask for fewer with --workers"
            ) from error


@contextmanager
def _connected(address: str, workers: int) -> Iterator[Any]:
    """Ray's module, connected for the time of the block."""
    ray = _ray()
    if address:
        _check_answers(address)
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": workers or None}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    # Workers import our own modules from where this process does.
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, options)
        yield ray
    finally:
        ray.shutdown()
        # Ray leaves its own behind.
        signal.signal(signal.SIGTERM, before)


def _start(ray: Any, options: Mapping[str, Any]) -> None:
    """Starts or joins Ray, which gives a machine that is busy half a minute only: so it is tried again.

    Raises:
        Unreachable: when it does not start.
    """
    for left in reversed(range(STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            # Whatever it is: Ray raises bare exceptions here.
            ray.shutdown()
            if not left:
                reason = str(error).strip().partition("\n")[0]
                raise Unreachable(f"Ray does not start ({reason}): leave out --engine, or try again later") from error


def _check_answers(address: str) -> None:
    """Asks a cluster for its health in a process of its own, which can be ended.

    Raises:
        BadInput: when the address is not of the form host:port.
        Unreachable: when it does not answer in time.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise BadInput(f"--ray-address is {address!r}: write host:port, as 'ray start --head' prints it")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
        found = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
        reason = "it is no Ray cluster, or one with another version or token" if found.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error.strerror if isinstance(error, OSError) else f"it is silent for {TIMEOUT_S:g} s")
    if reason:
        raise Unreachable(
            f"no Ray answers at {address} ({reason}): start one with 'ray start --head', or leave out --ray-address "
            "for a Ray of this machine"
        )


def _ray() -> Any:
    # Otherwise it prints a note about tokens, and a warning about accelerators that nobody asked for.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackage(
            "--engine is ray, but the package ray is not installed here: run "
            "'python -m pip install -c requirements.lock --group ray', or leave the option out"
        ) from error
    return ray
