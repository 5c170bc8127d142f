"""The run's evaluation report."""

from store.artifacts import Run
from store.errors import UnknownId

FILE = "report.json"


def newest_report(run: Run) -> bytes:
    """The JSON of the report that was made last, of whichever part.

    Raises:
        UnknownId: when there is none; the message names the command.
    """
    found = sorted(run.reports_dir.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UnknownId(f"{run.root} has no report: make it with 'python cli.py evaluate --run {run.root} --frontier'")
    return found[-1].read_bytes()
