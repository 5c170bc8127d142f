"""Which prepared data set a run stands on; asked before anything that takes long to import."""

import json

from store.artifacts import Run
from store.atomic import atomic_write
from store.errors import CorruptArtifact, MissingStep

PREPARED = "prepared.json"


def prepared_key(run: Run) -> str:
    """The key of the data set that was prepared last.

    Raises:
        MissingStep: when nothing has been prepared there.
        CorruptArtifact: when its name is unreadable.
    """
    path = run.root / PREPARED
    command = f"'python cli.py prepare --run {run.root} LOG CATALOG'"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["dataset"])
    except FileNotFoundError as error:
        raise MissingStep(f"{run.root} holds no prepared data: make it with {command}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path} is unreadable ({error}): make it again with {command}") from error


def is_prepared(run: Run) -> bool:
    """Whether there is one.

    Raises:
        CorruptArtifact: as `prepared_key`.
    """
    try:
        prepared_key(run)
    except MissingStep:
        return False
    return True


def save_prepared_key(run: Run, key: str) -> None:
    """Names the data set that the next steps work on; what is published stays as it is."""
    atomic_write(run.root / PREPARED, json.dumps({"dataset": key}) + "\n")
