"""Every error that a user can meet, with its exit code; caught once, in cli.py.

A message says what was found, what was expected, and what to do.
"""

from collections.abc import Sequence


class TandemError(Exception):
    """Root of all errors that are the user's to mend; anything else that escapes is a bug of ours."""

    exit_code = 1


class BadInput(TandemError):
    """Data, a column, a row, an option or a configuration key that cannot be used."""

    exit_code = 3

    @classmethod
    def of(cls, faults: Sequence[str], where: str) -> "BadInput":
        """One error that lists all faults found in `where`, so that they can be mended in one go."""
        if len(faults) == 1:
            return cls(f"{where}: {faults[0]}")
        return cls("\n".join([f"{where}: {len(faults)} faults", *(f"  - {fault}" for fault in faults)]))


class MissingStep(TandemError):
    """A step of the run that has not been made; the message names the command that makes it."""

    exit_code = 4


class CorruptArtifact(TandemError):
    """A file of a run or an asset that is truncated, altered or unreadable."""

    exit_code = 5


class Mismatch(TandemError):
    """Two artifacts that do not belong together, as an index built with another model, or one of a newer version."""

    exit_code = 6


class RunBusy(TandemError):
    """Another command is writing to the same run directory."""

    exit_code = 7


class UnknownId(TandemError):
    """A user or an item that the run has never seen."""

    exit_code = 8


class MissingPackage(TandemError):
    """A Python package that is not installed."""

    exit_code = 9


class NoSpace(TandemError):
    """The disk is full or refuses the write; what was there before is untouched."""

    exit_code = 10


class FetchFailed(TandemError):
    """An asset that could not be downloaded, or whose bytes are not the pinned ones."""

    exit_code = 11


class NotFinite(TandemError):
    """Training met a loss, a weight or a score that is NaN or infinite."""

    exit_code = 12


class OutOfMemory(TandemError):
    """Memory ran out; the message names settings that need less."""

    exit_code = 13


class Unreachable(TandemError):
    """A service at an address, such as Milvus or Ray, that does not answer in time, or refuses."""

    exit_code = 14
