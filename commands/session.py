"""A command under way: what it says, the run that it opens, the settings that it keeps."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands.options import DEFAULT_RUN


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


def say_next(command: str) -> None:
    """The command that comes next."""
    say(f"next: {command}")


def run_log(command: str, run: Path) -> Any:
    """Where a command writes down what it did."""
    from pipeline.run_log import RunLog
    from store.artifacts import Run

    return RunLog(Run(run), command)


def refuse_unprepared(run: Path) -> None:
    """Refuses a run in which nothing is prepared, unless it is the default run; imports nothing that takes long."""
    from store.artifacts import Run
    from store.prepared import prepared_key

    if run != DEFAULT_RUN:
        prepared_key(Run(run))


def ensured(run: Path, *, needs: str) -> None:
    """Refuses a run in which nothing is prepared; the default run is made, up to what this command needs."""
    from store.artifacts import Run
    from store.prepared import is_prepared, prepared_key

    if run == DEFAULT_RUN and not (needs == "prepare" and is_prepared(Run(run))):
        from pipeline.steps import ensure_default_run

        ensure_default_run(needs, run_log("serve", run))
    prepared_key(Run(run))


def opened(command: str, run: Path, settings: list[str] | None, *, needs: str) -> tuple[Any, Any]:
    """The run's workspace and log; the default run first makes whatever comes before this command."""
    refuse_unprepared(run)
    from dataclasses import replace

    from config import with_overrides
    from pipeline.steps import ensure_default_run
    from pipeline.workspace import open_workspace

    log = run_log(command, run)
    if run == DEFAULT_RUN:
        say(f"run: {run} (the default)")
        ensure_default_run(needs, log)
    ws = open_workspace(run)
    if settings:
        ws = replace(ws, config=with_overrides(ws.config, settings))
        ws.check_models()
    return ws, log


def keep(ws: Any, settings: list[str] | None) -> None:
    """Writes changed settings into the run once the step that they were meant for has succeeded."""
    if settings:
        from pipeline.workspace import save_config

        with ws.run.lock(wait_s=30):
            save_config(ws.run, ws.config)
        say(f"kept in {ws.run.config_path}: {', '.join(settings)}")


def choice(kind: Callable[[str], Any], text: str, option: str) -> Any:
    """One of the values of an enumeration, by its name.

    Raises:
        BadInput: naming those that there are.
    """
    from store.errors import BadInput

    try:
        return kind(text)
    except ValueError as error:
        known = ", ".join(str(choice) for choice in kind)  # type: ignore[attr-defined]
        raise BadInput(f"{option} is {text!r}; it may be {known}") from error


def chosen_engine(kind: str, address: str, workers: int) -> Any:
    """The engine that the options name.

    Raises:
        BadInput: when it is unknown, or options of Ray go with another one.
    """
    from pipeline.engine import Engine, EngineKind
    from store.errors import BadInput

    engine = Engine(choice(EngineKind, kind, "--engine"), address, workers)
    if engine.kind is not EngineKind.RAY and (address or workers):
        raise BadInput("--ray-address and --workers go with --engine ray")
    return engine
