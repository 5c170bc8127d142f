"""Data flows one way, and every file is one noun of moderate size."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "store": "",
    "data": "store",
    "index": "store data",
    "eval": "store data",
    "fusion": "store data",
    "retrieval": "store data index eval fusion",
    "baselines": "store data index eval fusion retrieval",
    "rerank": "store data eval fusion",
    "recommend": "store data index retrieval rerank fusion",
    "serve": "store data rerank recommend",
    "pipeline": "store data index eval fusion retrieval baselines rerank recommend config",
    "commands": "store data index eval fusion retrieval baselines rerank recommend serve config pipeline",
}
# What stands above the pipeline and is imported by nobody but its own kind.
TOP = {"bench", "tests", "scripts"}
SOURCES = sorted(
    path for path in ROOT.glob("[!.]*/**/*.py") if path.relative_to(ROOT).parts[0] not in {"runs", "assets"}
)
FOLDERS = sorted({path.relative_to(ROOT).parts[0] for path in SOURCES} - TOP)
ALL = [*SOURCES, *ROOT.glob("*.py")]


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports, inside its functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.partition(".")[0]
        for name in plain | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_lies_below_it(folder):
    ours = {*FOLDERS, *TOP, "config", "cli"}
    allowed = {folder, *MAY_IMPORT[folder].split()}
    wrong = {str(path.relative_to(ROOT)): imported(path) & ours - allowed for path in (ROOT / folder).rglob("*.py")}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_it_is(folder):
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))


def test_no_file_outgrows_its_noun():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ALL}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_file_is_a_drawer():
    assert [path for path in ALL if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []
