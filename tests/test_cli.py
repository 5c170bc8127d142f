"""The command line as its users meet it: help, answers, refusals with their exit codes, and the default run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store.artifacts import Run
from store.errors import BadInput, MissingPackage, MissingStep, NoSpace
from tests.pipeline.commands import Done, Faults, refused, run, start
from tests.pipeline.shop import Shop, catalog_rows, log_rows, write_rows

CLI = Path(__file__).parents[1] / "cli.py"
COMMANDS = (
    *("fetch", "prepare", "train-retriever", "build-index", "train-reranker", "evaluate", "recommend", "fit"),
    *("export-reranker", "quickstart", "demo", "doctor", "serve"),
    *(f"index {change}" for change in ("add", "update", "remove", "compact", "verify", "list", "rollback")),
    *("keys add", "keys list", "keys revoke", "events export"),
)
LOG, CATALOG = ["user_id", "item_id", "timestamp"], ["item_id", "title", "genres"]


# --- help, and a machine that lacks something


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example_that_names_it(command, tmp_path):
    done = run(*command.split(), "--help", cwd=tmp_path)
    assert done.code == 0
    said = " ".join(done.out.split())
    assert f"Example: python cli.py {command}" in said


def test_help_lists_every_command(tmp_path):
    for arguments in ([], ["--help"]):
        done = run(*arguments, cwd=tmp_path)
        said = done.out + done.err
        assert all(command.split()[0] in said for command in COMMANDS)


def test_examples_of_the_help_are_understood(tmp_path):
    """Every option that an example or the README names exists."""
    text = CLI.read_text(encoding="utf-8") + CLI.with_name("README.md").read_text(encoding="utf-8")
    names = "|".join(COMMANDS)
    used = re.findall(rf"python cli\.py ({names}|[a-z][a-z-]*)((?:[^\"`\n;#\\]|\\\n)*)", text)
    assert len({command for command, _ in used}) >= 15
    helps = {command: run(*command.split(), "--help", cwd=tmp_path).out for command in COMMANDS}
    for command, rest in used:
        assert command in COMMANDS
        for option in re.findall(r"(?<!\w)(--?[a-z][a-z-]*)", rest):
            assert option in helps[command], f"{command} {option}"


def test_help_imports_neither_torch_nor_polars():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['cli.py', '--help']\n"
        f"try:\n    runpy.run_path({str(CLI)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'polars', 'numpy', 'transformers', 'faiss', 'pydantic', 'scipy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CLI.parent)
    assert done.stdout.endswith("HEAVY []\n")


@pytest.mark.parametrize("command", ["recommend --user 1", "evaluate", "train-retriever", "serve", "keys list"])
def test_an_unprepared_run_is_told_before_anything_that_takes_long_is_imported(command, tmp_path):
    arguments = ["cli.py", *command.split(), "--run", str(tmp_path / "none")]
    code = (
        "import sys, runpy\n"
        f"sys.argv = {arguments!r}\n"
        f"try:\n    runpy.run_path({str(CLI)!r}, run_name='__main__')\n"
        f"except SystemExit as end:\n    assert end.code == {MissingStep.exit_code}, end.code\n"
        "heavy = {'torch', 'transformers', 'faiss', 'scipy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CLI.parent)
    assert done.stdout.endswith("HEAVY []\n")
    assert "holds no prepared data" in done.stderr


def test_without_site_packages_it_says_how_to_get_them(tmp_path):
    done = subprocess.run([sys.executable, "-S", "-I", CLI, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 9
    assert "'typer' is not installed" in done.stderr
    assert ". .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named(shop: Shop, tmp_path):
    query = ["recommend", "--run", shop.run, "--query", "bal"]
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(CLI.parent)!r})\n"
        "sys.modules['polars'] = None\n"  # as if it were not installed: the import system raises
        "import cli\n"
        f"sys.argv = ['cli.py', *{list(map(str, query))!r}]\n"
        "cli.main()\n"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    done = Done(fresh.returncode, fresh.stdout, fresh.stderr, 0)
    refused(done, MissingPackage, "package 'polars' is not installed here", r"\. \.venv/bin/activate")
    late = run(*query, cwd=tmp_path, faults=Faults(missing=("sentence_transformers",)))
    refused(late, MissingPackage, "package 'sentence_transformers' is not installed here: . .venv/bin/activate")


def test_the_command_line_itself_is_checked(tmp_path):
    for arguments in (
        ["recomend"],
        ["recommend", "--usr", "3"],
        ["prepare"],
        ["recommend", "--run", tmp_path, "--user", "1", "--depth", "-1"],
        ["recommend", "--run", tmp_path, "--all", "-o", "x", "--users", "-1"],
        ["recommend", "--run", tmp_path, "--user", "1", "-k", "many"],
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err


def test_doctor_says_what_is_here(tmp_path):
    done = run("doctor", cwd=tmp_path, env={"TANDEM_ASSETS": str(tmp_path / "none")})
    assert done.code == 0, done.err
    assert "cores" in done.out
    assert "asset minilm-l6: get it with 'python cli.py fetch minilm-l6'" in done.out


def test_an_unknown_asset_is_answered_with_the_nearest(tmp_path):
    refused(
        run("fetch", "minilm", cwd=tmp_path), BadInput, r"no asset 'minilm' \(did you mean minilm-l6", "movielens-100k"
    )


# --- the steps


def test_the_whole_chain_by_its_commands_each_naming_the_next(shop: Shop, tmp_path):
    root = tmp_path / "runs" / "own"
    expected = ["train-retriever", "build-index", "train-reranker", "evaluate", "recommend"]
    steps = [["prepare", shop.log, shop.catalog, *shop.set_options], *([name] for name in expected[:-1])]
    for (name, *files), following in zip(steps, expected, strict=True):
        done = run(name, "--run", root, *files, cwd=tmp_path)
        assert done.code == 0, done.err
        assert f"next: python cli.py {following} --run {root}" in done.err
    done = run("fit", "--final", "--run", root, cwd=tmp_path)
    assert done.code == 0, done.err
    done = run("recommend", "--run", root, "--user", "u010", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "final fit" in done.out
    entries = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    assert {entry["command"] for entry in entries} >= {"prepare", "train-retriever", "build-index", "evaluate", "fit"}
    assert Run(root).release().retriever


def test_the_frontier_by_its_command(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    few = ("--set", "sweep.depths=[4,8]", "--set", "sweep.precisions=['float32']", "--set", "sweep.timed_users=2")
    done = run("evaluate", "--run", root, "--frontier", "--no-baselines", *few, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "frontier: 6 settings" in done.out
    saved = json.loads((root / "reports/validation/report.json").read_text())["frontier"]
    assert [point["setting"]["depth"] for point in saved["points"]] == [4, 4, 4, 8, 8, 8]
    assert (root / "reports/validation/frontier.png").stat().st_size > 1000


def test_an_exported_reranker_stands_where_it_was_asked_for(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    done = run("export-reranker", "--run", root, "-o", tmp_path / "out", cwd=tmp_path)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "head.safetensors", "reranker.json"}
    refused(run("export-reranker", "--run", root, "-o", tmp_path / "out", cwd=tmp_path), BadInput, "is there already")
    asked = ("--shape", "cross-encoder", "-o", tmp_path / "other")
    refused(run("export-reranker", "--run", root, *asked, cwd=tmp_path), BadInput, "no head like that")
    assert not (tmp_path / "other").exists()
    refused(run("export-reranker", "--run", root, "--shape", "x", "-o", "y", cwd=tmp_path), BadInput, "may be merged")


def test_a_run_that_lacks_a_step_names_the_command(shop: Shop, tmp_path):
    root = tmp_path / "own"
    later = ("build-index", "train-reranker", "evaluate", "fit --final", "recommend --user u010")
    for command in ("train-retriever", *later):
        done = run(*command.split(), "--run", root, cwd=tmp_path)
        refused(done, MissingStep, rf"python cli\.py prepare --run {root} LOG CATALOG")
    assert not root.exists()
    new = tmp_path / "new"
    assert run("prepare", "--run", new, shop.log, shop.catalog, *shop.set_options, cwd=tmp_path).code == 0
    for command in later:
        done = run(*command.split(), "--run", new, cwd=tmp_path)
        refused(done, MissingStep, rf"python cli\.py train-retriever --run {new}")
    assert run("train-retriever", "--run", new, cwd=tmp_path).code == 0
    done = run("recommend", "--run", new, "--user", "u010", cwd=tmp_path)
    refused(done, MissingStep, rf"python cli\.py build-index --run {new}")


def test_a_model_that_does_not_exist_is_refused_and_not_saved(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    before = (root / "config.toml").read_bytes()
    done = run("train-retriever", "--run", root, "--set", "retriever.encoder.model=minilm-l7", cwd=tmp_path)
    refused(done, BadInput, "no model 'minilm-l7'", "did you mean minilm-l6")
    assert (root / "config.toml").read_bytes() == before


def test_fit_must_be_asked_to_be_final(shop: Shop, tmp_path):
    refused(run("fit", "--run", shop.run, cwd=tmp_path), BadInput, "--final")


def test_evaluate_prints_a_table_or_its_json(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    done = run("evaluate", "--run", root, "--no-baselines", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "retrieval only" in done.out
    assert str(root / "reports" / "validation" / "report.html") in done.out
    done = run("evaluate", "--run", root, "--no-baselines", "--json", "--split", "test", cwd=tmp_path)
    found = json.loads(done.out)
    assert found == json.loads((root / "reports" / "test" / "report.json").read_text())
    assert found["counts"]["users asked"] == 120
    refused(run("evaluate", "--run", root, "--split", "train", cwd=tmp_path), BadInput, "it may be validation, test")


def test_interrupted_it_says_so_and_ends_with_130(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    before = Run(root).release()
    command = start(
        *("train-retriever", "--run", root, "--set", "retriever.recency.epochs=5000"),
        *("--set", "retriever.train.patience=5000"),
        cwd=tmp_path,
    )
    command.wait_for("epoch 1")
    os.kill(command.process.pid, signal.SIGINT)
    done = command.wait()
    assert done.code == 130
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    assert Run(root).release() == before


# --- the default run, and everything at once


def test_the_default_run_makes_its_missing_steps_and_names_itself(shop: Shop, tmp_path):
    done = run("prepare", shop.log, shop.catalog, *shop.set_options, cwd=tmp_path)
    assert done.code == 0, done.err
    done = run("recommend", "--user", "u010", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "run: runs/demo (the default)" in done.err
    for step in ("train-retriever", "build-index", "train-reranker"):
        assert f"{step} on runs/demo" in done.err
    assert Run(tmp_path / "runs/demo").release() == Run(shop.run).release()
    again = run("recommend", "--user", "u010", "--json", cwd=tmp_path)
    assert again.err == "run: runs/demo (the default)\n"
    assert json.loads(again.out)["items"] == json.loads(done.out)["items"]


def test_the_default_run_recommends_while_another_command_trains_it(shop: Shop, tmp_path):
    shutil.copytree(shop.run, tmp_path / "runs" / "demo")
    with Run(tmp_path / "runs" / "demo").work(), Run(tmp_path / "runs" / "demo").lock():
        done = run("recommend", "--user", "u010", cwd=tmp_path)
    assert done.code == 0, done.err


def test_the_default_run_is_quiet_after_a_final_fit(shop: Shop, tmp_path):
    """The reranker has no weight here, so the final release has none; that is no missing step."""
    shutil.copytree(shop.run, tmp_path / "runs" / "demo")
    assert run("fit", "--final", cwd=tmp_path).code == 0
    assert Run(tmp_path / "runs" / "demo").release().reranker is None
    done = run("recommend", "--user", "u010", cwd=tmp_path)
    assert done.code == 0
    assert done.err == "run: runs/demo (the default)\n"


def test_quickstart_does_it_all_from_files_with_names_of_their_own(shop: Shop, tmp_path):
    """Columns of other names, times in milliseconds: guessed, and said aloud."""
    log = write_rows(
        tmp_path / "events.csv",
        ["visitor", "sku", "ts"],
        [[user, item, str(int(time) * 1000)] for user, item, time in log_rows()],
    )
    catalog = write_rows(tmp_path / "products.csv", ["sku", "name", "category"], catalog_rows())
    root = tmp_path / "runs" / "own"
    done = run("quickstart", log, catalog, "--run", root, "--users", 15, *shop.set_options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"user_id = visitor.*item_id = sku", done.err)
    assert "ts is in ms, not s" in done.err
    assert re.search(r"expected: about \d+ minutes", done.err)
    steps = ["train-retriever", "build-index", "train-reranker", "evaluate", "fit --final"]
    places = [done.err.index(f"$ python cli.py {step}") for step in steps]
    assert places == sorted(places)
    assert f"report: {root / 'reports' / 'validation' / 'report.html'}" in done.out
    assert f"next: python cli.py recommend --run {root} --user u000" in done.err
    report = json.loads((root / "reports" / "validation" / "report.json").read_text())
    assert report["counts"]["users asked"] == 15
    found = json.loads(run("recommend", "--run", root, "--history", "i07,i08", "--json", cwd=tmp_path).out)
    assert (found["items"][0]["item_id"], found["release_fit"]) == ("i09", "final")
    assert found["items"][0]["title"] == catalog_rows()[9][1]


def test_quickstart_of_too_little_to_hold_anything_out_still_recommends(shop: Shop, tmp_path):
    log = write_rows(tmp_path / "log.csv", ["user", "item"], [["a", "i0"], ["b", "i1"], ["c", "i0"]])
    catalog = write_rows(
        tmp_path / "items.csv", ["item", "title"], [["i0", "red lamp"], ["i1", "chair"], ["i2", "chair"]]
    )
    root = tmp_path / "few"
    done = run("quickstart", log, catalog, "--run", root, *shop.set_options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "no report" in done.out
    answer = json.loads(run("recommend", "--run", root, "--user", "a", "-k", 2, "--json", cwd=tmp_path).out)
    assert {item["item_id"] for item in answer["items"]} == {"i1", "i2"}


def test_a_log_that_cannot_be_written_is_told(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    (root / "log.jsonl").write_text("\n" * 1_000_000)
    done = run("build-index", "--run", root, cwd=tmp_path, faults=Faults(file_limit=1_000_000))
    refused(done, NoSpace, r"log\.jsonl.*make room")
    (root / "log.jsonl").unlink()
    (root / "log.jsonl").mkdir()
    refused(run("build-index", "--run", root, cwd=tmp_path), NoSpace, r"log\.jsonl")


@pytest.mark.slow
def test_the_demo_of_a_fresh_checkout(tmp_path):
    """`recommend --user 42` alone makes the default run, with real assets and tiny budgets."""
    from store.assets import default_assets_dir, fetched
    from store.errors import TandemError

    try:
        folders = [fetched(name) for name in ("movielens-100k", "minilm-l6")]
    except TandemError as error:
        pytest.skip(str(error))
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "assets", "tests", ".*_cache", "__pycache__")
    checkout = Path(shutil.copytree(CLI.parent, tmp_path / "checkout", ignore=ignored))
    env = {**os.environ, "TANDEM_ASSETS": str(default_assets_dir()), "OMP_NUM_THREADS": "2"}
    tiny = ["retriever.recency.epochs=1", "reranker.train.budget_minutes=0.2", "reranker.fusion_users=20"]
    options = [part for setting in tiny for part in ("--set", setting)]
    log, catalog = (folders[0] / f"{name}.parquet" for name in ("interactions", "items"))

    def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "cli.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=env, check=True)

    cli("prepare", log, catalog, *options)
    done = cli("recommend", "--user", "42")
    assert "train-reranker on runs/demo" in done.stderr
    assert len(re.findall(r"^ *\d+ │", done.stdout, re.MULTILINE)) == 10
    assert re.search(r"\(19\d\d\)", done.stdout)
    assert cli("build-index").stdout.strip() == Run(checkout / "runs/demo").release().index


def test_settings_are_kept_by_the_step_that_used_them_and_not_by_an_evaluation(shop: Shop, tmp_path):
    root = shop.copy(tmp_path)
    before = (root / "config.toml").read_text()
    judged = run("evaluate", "--run", root, "--no-baselines", "--set", "recommend.depth=3", cwd=tmp_path)
    assert judged.code == 0, judged.err
    assert (root / "config.toml").read_text() == before
    refused(run("evaluate", "--run", root, "--set", "split.kind=temporal", cwd=tmp_path), MissingStep)
    assert (root / "config.toml").read_text() == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--user", "u000", "--split", "test"], "--split, --users, --towers-only and --engine go with --all"),
        (["--user", "u000", "--users", "5"], "--split, --users, --towers-only and --engine go with --all"),
        (["--all", "-o", "recs.parquet", "--json"], "leave out .*--json"),
        (["--all", "-o", "recs.csv"], "ends in .csv: recommendations are written as Parquet"),
        (["--all", "-o", "."], "is a folder"),
    ],
)
def test_options_that_would_be_ignored_are_refused(shop: Shop, tmp_path, options, told):
    refused(run("recommend", "--run", shop.run, *options, cwd=tmp_path), BadInput, told)
