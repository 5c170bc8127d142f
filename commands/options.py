"""Options that several commands take, in the same words."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_RUN = Path("runs/demo")
IDS_LISTED = "separated by commas; one with a comma or outer blank in quotation marks, as in '\"a,b\",c'"

RunOption = Annotated[Path, typer.Option("--run", help="run directory")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="a setting, as in --set retriever.recency.epochs=4; kept in the run by the steps that make "
        "something; can be repeated",
    ),
]
MapOption = Annotated[
    list[str] | None, typer.Option("--map", help="a column, as in --map user_id=visitor; can be repeated")
]
BudgetMinutesOption = Annotated[
    float | None,
    typer.Option("--budget-minutes", min=0.01, help="for the whole training; short for train.budget_minutes of it"),
]
ForceOption = Annotated[bool, typer.Option("--force", help="make it again even if it is already there")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout")]
UsersOption = Annotated[int, typer.Option("--users", min=0, help="users drawn by a hash of their id; 0: all")]
TableOption = Annotated[Path | None, typer.Option("--users-table", help="optional table of users")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="process: this one alone; ray: several, here or on a cluster")
]
RayAddressOption = Annotated[
    str, typer.Option("--ray-address", help="host:port of a Ray cluster; without it, a Ray of this machine")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="processes of Ray; 0: one for each processor")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of settings")]
TemplateOption = Annotated[
    str | None, typer.Option(help="item text, as in '{title} | {genres}'; the default takes descriptive columns")
]


def example(text: str) -> str:
    """The epilog that shows a worked example."""
    return f"Example: {text}"
