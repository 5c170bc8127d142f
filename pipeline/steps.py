"""The steps in their order: what quickstart, the demo and the default run make one after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config
from data.columns import detect_mapping, time_columns
from data.schema import ITEM_ID, TIMESTAMP, USER_ID
from data.table import Table, read_table
from data.times import unit_that_fits
from pipeline.build_index import build_index
from pipeline.evaluate import EvaluationOptions, evaluate_run
from pipeline.fit_final import fit_final
from pipeline.forecast import forecast
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_reranker import train_reranker
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from store.artifacts import Run
from store.assets import fetch
from store.errors import MissingStep
from store.prepared import is_prepared

DEFAULT_RUN = Path("runs/demo")
DEMO_DATA = "movielens-100k"
QUICKSTART_USERS = 2000
"""Users, drawn by hash, that a quickstart's evaluation of both stages asks."""


@dataclass(frozen=True)
class Step:
    """One command of the main job."""

    name: str
    is_made: Callable[[Workspace], bool]
    make: Callable[[Workspace, RunLog], object]


def _has_reranker(ws: Workspace) -> bool:
    """Whether the evaluation fit's reranker is made, and published unless something else is, such as a final fit."""
    release = ws.run.release()
    published = release.reranker is not None or release.retriever != ws.retriever_key(FitKind.EVALUATION)
    whole = ws.run.has("reranker", ws.reranker_key(FitKind.EVALUATION))
    return published and whole and ws.has_reranker(FitKind.EVALUATION)


def _has_index(ws: Workspace) -> bool:
    """Whether an index by the present settings is published, whole, of either fit."""
    published = ws.run.release().index
    wanted = [ws.index_key(fit) for fit in (FitKind.EVALUATION, FitKind.FINAL)]
    return published is not None and published in wanted and ws.run.has("index", published)


STEPS: Sequence[Step] = (
    Step(
        "train-retriever",
        lambda ws: ws.run.has("retriever", ws.retriever_key(FitKind.EVALUATION)),
        lambda ws, log: train_retriever(ws, log=log),
    ),
    Step(
        "build-index",
        _has_index,
        lambda ws, log: build_index(ws, log=log),
    ),
    Step(
        "train-reranker",
        _has_reranker,
        lambda ws, log: train_reranker(ws, log=log),
    ),
)


def fetch_models(config: Config, log: RunLog) -> None:
    """Fetches the assets that the config names as models; other models are the user's own."""
    from store.assets import ASSETS

    for name in dict.fromkeys((config.retriever.encoder.model, config.reranker.model)):
        if name in ASSETS:
            fetch(name, progress=log.say)


def prepare_demo(log: RunLog, config: Config) -> Workspace:
    """MovieLens-100k in the default run, fetched where it is missing."""
    folder = fetch(DEMO_DATA, progress=log.say)
    fetch_models(config, log)
    return prepare(
        Run(DEFAULT_RUN),
        folder / "interactions.parquet",
        folder / "items.parquet",
        users=folder / "users.parquet",
        config=config,
        log=log,
    )


def ensure_default_run(upto: str, log: RunLog) -> None:
    """Makes what the default run lacks, up to and with the step `upto`.

    Args:
        upto: "prepare" or the name of one of STEPS.
    """
    run = Run(DEFAULT_RUN)
    # What is all there can be used while another command writes, so it is asked without the lock first.
    if is_prepared(run) and not _missing(upto):
        return
    with run.work(wait_s=3600):
        if not is_prepared(run):
            log.say(f"the default run {DEFAULT_RUN} is not there yet: making it with {DEMO_DATA}")
            prepare_demo(log, Config())
        ws = open_workspace(DEFAULT_RUN)
        fetch_models(ws.config, log)
        for step in _missing(upto):
            log.say(f"{step.name} on {DEFAULT_RUN}")
            step.make(ws, log)


def _missing(upto: str) -> list[Step]:
    """The steps up to and with `upto` that the default run, prepared before, still lacks."""
    names = ["prepare", *(step.name for step in STEPS)]
    ws = open_workspace(DEFAULT_RUN)
    try:
        return [step for step in STEPS[: names.index(upto)] if not step.is_made(ws)]
    except MissingStep:  # without its models a run cannot even tell what it lacks
        return list(STEPS[: names.index(upto)])


def quickstart(
    run: Run,
    log_path: Path,
    catalog_path: Path,
    *,
    users_path: Path | None,
    config: Config,
    log: RunLog,
    options: EvaluationOptions,
) -> tuple[Workspace, Path | None]:
    """Everything from two files to a published release and a report.

    Returns:
        The run, and the report's page; None where the data are too few to hold anything out.
    """
    fetch_models(config, log)
    with run.work():
        ws = prepare(run, log_path, catalog_path, users=users_path, config=config, log=log)
        log.say(f"expected: {forecast(ws, evaluation_users=options.users).in_words()}")
        for step in STEPS:
            log.say(f"$ python cli.py {step.name} --run {run.root}")
            step.make(ws, log)
        page = None
        if len(ws.selectors):
            log.say(f"$ python cli.py evaluate --run {run.root} --split {options.part} --users {options.users}")
            _, page = evaluate_run(ws, options, log=log)
        else:
            log.say("no report: no user of group B has interactions enough to hold one out")
        log.say(f"$ python cli.py fit --final --run {run.root}")
        fit_final(ws, log=log)
    return ws, page


def guessed_config(config: Config, log_path: Path, catalog_path: Path, users_path: Path | None, log: RunLog) -> Config:
    """The config with the columns that mean user, item, rating and, by its values, too, time; and the unit of time.

    What the config states wins, and every guess is said aloud.
    """
    interactions = read_table(log_path)
    users = read_table(users_path).columns if users_path else ()
    guessed = detect_mapping(interactions.columns, read_table(catalog_path).columns, users)
    columns = {
        **{key: found for key, found in guessed.items() if _bare(key) not in config.data.columns},
        **config.data.columns,
    }
    times = _times(interactions, columns) if TIMESTAMP not in map(_bare, config.data.columns) else []
    if times:
        columns[f"log.{TIMESTAMP}"] = times[0]
    log.say("columns: " + ", ".join(f"{key} = {found}" for key, found in columns.items()))
    if times[1:]:
        others = " and ".join(times[1:])
        log.say(f"{others} would do for the time, too: to take it instead, use --map {TIMESTAMP}={times[1]}")
    changes: dict[str, object] = {"columns": columns}
    time_column = columns.get(f"log.{TIMESTAMP}") or columns.get(TIMESTAMP)
    if time_column in interactions.columns:
        unit = unit_that_fits(interactions.frame[time_column], config.data.timestamp_unit)
        if unit is not None:
            log.say(f"{time_column} is in {unit}, not {config.data.timestamp_unit}")
            changes["timestamp_unit"] = unit
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def _times(interactions: Table, columns: Mapping[str, str]) -> list[str]:
    owners = [columns.get(f"log.{name}") or columns.get(name) for name in (USER_ID, ITEM_ID)]
    return time_columns(interactions, [owner for owner in owners if owner])


def _bare(key: str) -> str:
    return key.rpartition(".")[2]
