"""A small log and catalog in files of every kind, for the tests of loading."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from data.load import LoadConfig, load_dataset
from data.schema import Dataset
from store.errors import BadInput

DAY = 86_400
NOON = 1_400_000_000  # 2014-05-13, in Unix seconds

LOG = [
    {"user_id": "u2", "item_id": "01", "timestamp": NOON + 5, "rating": 4.0},
    {"user_id": "u1", "item_id": "1", "timestamp": NOON + 9, "rating": 5.0},
    {"user_id": "u2", "item_id": " b", "timestamp": NOON + 1, "rating": 2.0},
    {"user_id": "u1", "item_id": "01", "timestamp": NOON + 9, "rating": 3.0},
    {"user_id": "u1", "item_id": "1", "timestamp": NOON + 2, "rating": 1.0},
]
ITEMS = [
    {"item_id": "1", "title": "Alien (1979)", "genres": "Horror|Sci-Fi"},
    {"item_id": "01", "title": "Brazil (1985)", "genres": None},
    {"item_id": " b", "title": "Clue", "genres": "Comedy"},
    {"item_id": "new", "title": "Diva", "genres": "Crime"},
]
# By time; the two rows of u1 at NOON + 9 keep the order of the file.
TAKEN = {"u2": [" b", "01"], "u1": ["1", "1", "01"]}


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif name.endswith(".parquet"):
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
        return path
    else:
        frame = pl.DataFrame(rows, infer_schema_length=None)
        content = frame.write_csv(separator="\t" if name.endswith(".tsv") else ",").encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def taken(dataset: Dataset) -> dict[str, list[str]]:
    names = dataset.catalog.vocabulary.ids
    return {user: [names[row] for row in dataset.interactions[place]] for place, user in enumerate(dataset.users.ids)}


def load(folder: Path, **options):
    return load_dataset(folder / "log.csv", folder / "items.csv", LoadConfig(**options))


def faults_of(folder: Path, log: list[dict] | str, items: list[dict] | str = ITEMS, **options) -> str:
    for name, content in (("log", log), ("items", items)):
        (folder / f"{name}.csv").unlink(missing_ok=True)
        if isinstance(content, str):
            (folder / f"{name}.csv").write_text(content)
        else:
            write(folder / f"{name}.csv", content)
    with pytest.raises(BadInput) as caught:
        load(folder, **options)
    return str(caught.value)
