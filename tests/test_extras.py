"""Packages of optional parts are loaded by those parts alone, and only when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONLY_IN = {
    "pymilvus": {"index/milvus_collection.py"},
    "milvus_lite": {"index/milvus_collection.py"},
    "ray": {"pipeline/ray_workers.py"},
    "wandb": {"retrieval/trackers.py"},
}
SOURCES = [
    path
    for path in (*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py"))
    if path.relative_to(ROOT).parts[0] not in {"tests", "bench", "runs", "assets"}
]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.partition(".")[0]
        for name in plain | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@pytest.mark.parametrize("package", ONLY_IN)
def test_only_their_own_files_import_them(package):
    assert {str(path.relative_to(ROOT)) for path in SOURCES if package in imported(path)} == ONLY_IN[package]


def test_the_core_loads_none_of_them():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("index", "recommend", "pipeline", "commands")
        for path in sorted((ROOT / folder).glob("[!_]*.py"))
    ]
    script = (
        "import sys, importlib\n"
        f"for name in {['cli', *modules]!r}: importlib.import_module(name)\n"
        f"print(sorted({set(ONLY_IN)!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
