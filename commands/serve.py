"""The server, its keys and its events."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import DEFAULT_RUN, JsonOption, RunOption, example
from commands.session import ensured, say

if TYPE_CHECKING:
    from socket import socket

    from config import Config
    from recommend.shared import Address
    from serve.context import Server
    from serve.sockets import SharedAddress

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="a setting for this server alone, as in --set serve.queue=200; can be repeated"),
]
keys_app = typer.Typer(no_args_is_help=True, help="API keys of a run.", rich_markup_mode=None)
events_app = typer.Typer(no_args_is_help=True, help="Events that a server has taken.", rich_markup_mode=None)


def serve(
    run: RunOption = DEFAULT_RUN,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any that is free")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="processes that answer; they share one reranker")] = 1,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="no keys; for this machine alone, and only on a loopback address")
    ] = False,
    settings: SetOption = None,
) -> None:
    """Serve what is published: HTTP API, metrics and a web page; a newer release is taken over while it runs."""
    from serve.sockets import SharedAddress, bound, is_loopback, url_of
    from store.errors import BadInput

    if no_auth and not is_loopback(host):
        raise BadInput(f"--no-auth goes with a loopback address, and {host} is none: leave one of the two out")
    _begin_imports(run, workers)  # before this process does its own
    ensured(run, needs="train-reranker")
    from serve.logs import begin_logging
    from serve.server import serve_until_told

    _config(run, settings)  # a wrong setting is told before anything else
    address = SharedAddress(host, port) if workers > 1 else None
    listening = address.first if address else bound(host, port)
    if not no_auth:
        _first_key(run)
    lines = begin_logging()

    def started() -> None:
        several = f" by {workers} workers" if workers > 1 else ""
        say(f"serving {run}{several} at {url_of(listening)} (API: {url_of(listening)}/docs); stop with Ctrl-C")

    try:
        if address is None:
            serve_until_told(lambda: _server(run, settings, no_auth=no_auth), listening, started=started)
        else:
            _serve_by_workers(run, settings, address, started, workers=workers, no_auth=no_auth)
    finally:
        (address or listening).close()
        lines.stop()


@keys_app.command("add", epilog=example("python cli.py keys add --run runs/shop --scope read --days 90"))
def add_key(
    run: RunOption = DEFAULT_RUN,
    scope: Annotated[list[str], typer.Option(help="read, write; can be repeated")] = ["read"],  # noqa: B006  # typer's way
    days: Annotated[float | None, typer.Option(help="until it expires; without: never")] = None,
    note: Annotated[str, typer.Option(help="whose it is, for the list")] = "",
) -> None:
    """Make a key and print it, for the only time."""
    from commands.session import choice
    from serve.keys import Keys, Scope

    scopes = frozenset(choice(Scope, one, "--scope") for one in scope)
    ensured(run, needs="prepare")
    print(Keys(run).add(scopes, days=days, note=note))


@keys_app.command("list", epilog=example("python cli.py keys list --run runs/shop"))
def list_keys(run: RunOption = DEFAULT_RUN, as_json: JsonOption = False) -> None:
    """Show every key by its public part; the keys themselves are kept nowhere."""
    import json
    import time

    from serve.keys import Keys

    ensured(run, needs="prepare")
    keys = Keys(run).all()
    found = [
        {
            "name": key.name,
            "scopes": sorted(key.scopes),
            "made": _day(key.made),
            "expires": None if key.expires is None else _day(key.expires),
            "good": key.is_good(time.time()),
            "note": key.note,
        }
        for key in keys
    ]
    if as_json:
        print(json.dumps(found))
        return
    for key in keys:
        state = "good" if key.is_good(time.time()) else "closed"
        until = f"until {_day(key.expires)}" if key.expires else "for ever"
        scopes = "+".join(sorted(key.scopes))
        print(f"{key.name}  {state}  {scopes}  made {_day(key.made)}, {until}  {key.note}".rstrip())


@keys_app.command("revoke", epilog=example("python cli.py keys revoke 1f2e3d4c --run runs/shop"))
def revoke_key(
    name: Annotated[str, typer.Argument(help="the public part, as the list shows it")], run: RunOption = DEFAULT_RUN
) -> None:
    """Close a key; running servers know within a second."""
    from serve.keys import Keys

    ensured(run, needs="prepare")
    Keys(run).revoke(name)
    print(name)


@events_app.command("export", epilog=example("python cli.py events export --run runs/shop -o events.parquet"))
def export_events(
    output: Annotated[Path, typer.Option("-o", "--output", help="Parquet file")], run: RunOption = DEFAULT_RUN
) -> None:
    """Write the events as a log; 'prepare' on the same run takes them in by itself."""
    from recommend.events import Events

    ensured(run, needs="prepare")
    print(f"{output}: {Events(run).export(output):,} events")


def _begin_imports(run: Path, workers: int) -> None:
    """Starts the process from which workers and the reranker's process are forked, where there will be any."""
    from recommend.processes import begin_imports
    from store.artifacts import Run
    from store.errors import TandemError

    try:
        release = Run(run).release()
    except TandemError:
        return  # told by whoever opens it
    if release.index and (workers > 1 or release.reranker):
        begin_imports()


def _config(run: Path, settings: list[str] | None) -> "Config":
    from config import read_config, with_overrides
    from store.artifacts import Run

    return with_overrides(read_config(Run(run).config_path), settings or [])


def _first_key(run: Path) -> None:
    """Makes one where there is none yet, so that whoever starts a server can use it."""
    from serve.keys import Keys, Scope

    keys = Keys(run)
    if not keys.all():
        say(f"the first key of {run}, shown this once: {keys.add(frozenset(Scope), note='made by serve')}")
    keys.close()


def _server(run: Path, settings: list[str] | None, *, no_auth: bool, hub: "Address | None" = None) -> "Server":
    """What a server answers from, opened; with a hub the reranker is asked there."""
    from recommend.service import Service
    from recommend.shared import SharedReranker
    from serve.context import Server
    from serve.keys import Keys
    from serve.page_files import PAGE
    from store.artifacts import Run

    config = _config(run, settings)
    limit_s = config.serve.time_limit_ms / 1000
    service = Service(
        Run(run),
        configure=lambda: _config(run, settings).recommending,
        overload=config.serve.overload,
        time_limit_s=limit_s,
        opener=None if hub is None else lambda _run, key, _config: SharedReranker(hub, key, timeout_s=limit_s),
    )
    if service.serving.child is None:
        say(f"{run} has no reranker: answers are in retrieval order")
    return Server(service, config.serve, None if no_auth else Keys(run), PAGE)


def _serve_by_workers(
    run: Path,
    settings: list[str] | None,
    address: "SharedAddress",
    started: Callable[[], None],
    *,
    workers: int,
    no_auth: bool,
) -> None:
    from recommend.shared import RerankerHub
    from recommend.supervised import supervised
    from serve.workers import Workers
    from store.artifacts import Run

    config = _config(run, settings)
    limit_s, overload = config.serve.time_limit_ms / 1000, config.serve.overload
    hub = RerankerHub(
        lambda key: supervised(Run(run), key, config.recommend.precision, timeout_s=limit_s),
        batch=overload.batch,
        window_ms=overload.batch_window_ms,
        timeout_s=limit_s,
    )
    try:
        work = partial(work_on, run.resolve(), settings, no_auth, hub.address)
        Workers(work, workers, address).run(started)
    finally:
        hub.close()


def work_on(
    run: Path,
    settings: list[str] | None,
    no_auth: bool,
    hub: "Address",
    listening: "socket",
    started: Callable[[], None],
) -> None:
    """One worker: serves until it is told to end."""
    from serve.logs import begin_logging
    from serve.server import serve_until_told

    lines = begin_logging()
    try:
        serve_until_told(lambda: _server(run, settings, no_auth=no_auth, hub=hub), listening, started=started)
    finally:
        lines.stop()


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
