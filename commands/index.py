"""`index`: what is served takes items in and lets them go, is compacted, checked, and taken back."""

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.options import DEFAULT_RUN, JsonOption, RunOption, example
from commands.session import opened, say, say_next

app = typer.Typer(
    no_args_is_help=True,
    help="Change the index that a run serves, while it serves: add, update and remove items.",
)

ItemsArgument = Annotated[Path, typer.Argument(metavar="ITEMS", help="items: CSV, Parquet or JSONL")]


@app.command(epilog=example("python cli.py index add new.csv --run runs/shop"))
def add(items: ItemsArgument, run: RunOption = DEFAULT_RUN) -> None:
    """Add the items of a file: searchable, recommended and explained from the next request on."""
    ws, log = opened("index add", run, None, needs="build-index")
    from pipeline.change_index import add_items

    _told(add_items(ws.run, items, log=log), "added")
    say_next(f"python cli.py recommend --run {run} --user USER")


@app.command(epilog=example("python cli.py index update changed.csv --run runs/shop"))
def update(items: ItemsArgument, run: RunOption = DEFAULT_RUN) -> None:
    """Change the items of a file; only texts that differ are read again."""
    ws, log = opened("index update", run, None, needs="build-index")
    from pipeline.change_index import update_items

    _told(update_items(ws.run, items, log=log), "updated")


@app.command(epilog=example("python cli.py index remove 1032 1047 --run runs/shop"))
def remove(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="ids of items")] = None,
    file: Annotated[Path | None, typer.Option(help="ids, one a line in .txt, or the column item_id")] = None,
    run: RunOption = DEFAULT_RUN,
) -> None:
    """Take items out of every answer; they may still stand in histories, and may be added again."""
    from pipeline.change_index import ids_in, remove_items

    wanted = [*(ids or []), *(ids_in(file) if file else [])]
    ws, log = opened("index remove", run, None, needs="build-index")
    _told(remove_items(ws.run, wanted, log=log), "removed")


@app.command(epilog=example("python cli.py index compact --run runs/shop"))
def compact(run: RunOption = DEFAULT_RUN) -> None:
    """Fold all changes into a new index and publish it; the last three indexes stay."""
    ws, log = opened("index compact", run, None, needs="build-index")
    from pipeline.change_index import compact as fold

    print(fold(ws.run, log=log).index)


@app.command(epilog=example("python cli.py index verify --run runs/shop"))
def verify(run: RunOption = DEFAULT_RUN) -> None:
    """Check sums, canaries, counts, journals and vectors of everything that is served or could be."""
    ws, log = opened("index verify", run, None, needs="build-index")
    from pipeline.releases import verify as check

    print("\n".join(check(ws.run, log=log)))


@app.command(name="list", epilog=example("python cli.py index list --run runs/shop"))
def list_releases(run: RunOption = DEFAULT_RUN, as_json: JsonOption = False) -> None:
    """The releases on record; * marks the one that is served."""
    ws, _ = opened("index list", run, None, needs="build-index")
    from pipeline.releases import listed, listed_as_json

    lines = listed(ws.run)
    print(json.dumps(listed_as_json(lines)) if as_json else "\n".join(line.told() for line in lines))


@app.command(epilog=example("python cli.py index rollback --to 12 --run runs/shop"))
def rollback(
    to: Annotated[int | None, typer.Option(help="number of the release; without it, the one before this index")] = None,
    run: RunOption = DEFAULT_RUN,
) -> None:
    """Serve an earlier release again: its models, its index and its items, by one rename."""
    ws, log = opened("index rollback", run, None, needs="build-index")
    from pipeline.releases import go_back

    print(f"release {go_back(ws.run, to, log=log).number}")


def _told(changed: tuple[list[str], list[str], int], what: str) -> None:
    ids, unchanged, read = changed
    more = f", {len(unchanged):,} as they were" if unchanged else ""
    print(f"{len(ids):,} items {what}{more}")
    if read:
        say(f"{read:,} texts read")
