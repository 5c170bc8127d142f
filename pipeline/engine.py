"""Where the parts of a large piece of work are made: in this process, or by workers that Ray places."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

Part = TypeVar("Part")
Made = TypeVar("Made")


class EngineKind(StrEnum):
    """Who does the work."""

    PROCESS = "process"
    """this process alone"""
    RAY = "ray"
    """several processes, on this machine or on all of a Ray cluster"""


@dataclass(frozen=True)
class Engine:
    """Makes the parts of a work one by one or side by side, with the same results.

    Attributes:
        kind: who does it.
        address: of a Ray cluster, as host:port; empty: a Ray on this machine that ends with the work.
        workers: of Ray; 0: one for each processor that it has.
    """

    kind: EngineKind = EngineKind.PROCESS
    address: str = ""
    workers: int = 0

    def made(self, prepare: Callable[[], Callable[[Part], Made]], parts: Sequence[Part]) -> Iterator[Made]:
        """What is made of each part, in the order of the parts.

        Args:
            prepare: called once in each process that works, for what makes a part: there models are loaded.
                For Ray it must be picklable, and the paths that it opens must be there on every machine.
            parts: picklable, too.

        Raises:
            MissingPackage: when Ray is wanted and not installed.
            Unreachable: when no Ray answers at the address in time, or it loses a worker for good.
        """
        if self.kind is EngineKind.PROCESS:
            yield from map(prepare(), parts)
            return
        from pipeline.ray_workers import made_by_ray

        yield from made_by_ray(prepare, parts, address=self.address, workers=self.workers)


HERE = Engine()
"""This process alone."""
