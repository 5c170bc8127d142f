"""All faults of some input files, gathered, so that they can be mended in one go."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from store.errors import BadInput

_NAMED_ROWS = 5


class Faults:
    """What is wrong, file by file, in the order of finding."""

    def __init__(self) -> None:
        self._found: list[tuple[Path, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, path: Path, fault: str) -> None:
        """Notes one fault of the file at `path`."""
        self._found.append((path, fault))

    def raise_all(self, where: str = "") -> None:
        """Raises one BadInput with every fault noted; does nothing when there is none.

        Args:
            where: names a single file; empty for its path.
        """
        if not self._found:
            return
        paths = list(dict.fromkeys(path for path, _ in self._found))
        if len(paths) == 1:
            raise BadInput.of([fault for _, fault in self._found], where or str(paths[0]))
        where = " and ".join(str(path) for path in paths)
        raise BadInput.of([f"{path.name}: {fault}" for path, fault in self._found], where)


def rows_told(rows: Sequence[int]) -> str:
    """`row 7`, or `rows 2, 3, 5, 8, 13 and 12 more`."""
    named = ", ".join(f"{row}" for row in rows[:_NAMED_ROWS])
    more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'title'?` when a known name resembles `name`, or nothing."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
