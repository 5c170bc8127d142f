"""Vectors that a catalog brings along instead of texts to be read."""

import numpy as np
import polars as pl
import pytest

from data.load import LoadConfig, load_dataset, load_items
from data.prepared import dataset_fingerprint, load_prepared, save_prepared
from store.errors import BadInput
from tests.data.files import ITEMS, LOG, write

VECTORS = [[3.0, 4.0], [0.0, 2.0], [-1.0, 0.5], [0.1, 0.2]]
MAPPED = LoadConfig(columns={"vector": "embedding"})


def with_vectors(vectors: list) -> list[dict]:
    return [{**item, "embedding": vector} for item, vector in zip(ITEMS, vectors, strict=True)]


@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_lists_are_vectors_of_length_1(tmp_path, kind):
    write(tmp_path / "log.csv", LOG)
    items = write(tmp_path / f"items{kind}", with_vectors(VECTORS))
    dataset, _ = load_dataset(tmp_path / "log.csv", items, MAPPED)
    expected = np.array([[3 / 5, 4 / 5], [0, 1], [-1 / 1.25**0.5, 0.5 / 1.25**0.5], [1 / 5**0.5, 2 / 5**0.5]])
    assert dataset.catalog.vectors == pytest.approx(expected, abs=1e-6)
    assert "embedding" not in dataset.catalog.items.columns


@pytest.mark.parametrize("spelt", ["{0}|{1}", "[{0}, {1}]", "{0} {1}", "{0},{1}"])
def test_text_of_numbers_is_a_vector(tmp_path, spelt):
    items = write(tmp_path / "items.csv", with_vectors([spelt.format(*vector) for vector in VECTORS]))
    assert load_items(items, MAPPED)["vector"].to_numpy() == pytest.approx(np.array(VECTORS))


def test_arrays_of_parquet_are_vectors(tmp_path):
    frame = pl.DataFrame(ITEMS).with_columns(pl.Series("embedding", VECTORS, dtype=pl.Array(pl.Float64, 2)))
    frame.write_parquet(tmp_path / "items.parquet")
    assert load_items(tmp_path / "items.parquet", MAPPED)["vector"].to_numpy() == pytest.approx(np.array(VECTORS))


def test_all_faults_are_told_with_their_rows(tmp_path):
    broken = [[3.0, float("nan")], [0.0, 0.0], [1.0, 2.0], [1.0]]
    with pytest.raises(BadInput) as caught:
        load_items(write(tmp_path / "items.parquet", with_vectors(broken)), MAPPED)
    told = str(caught.value)
    assert "'embedding' holds no number, NaN or infinity in row 1" in told
    assert "'embedding' is a vector of length 0 in row 2" in told
    assert "'embedding' has not 2 numbers, as most rows have, in row 4" in told


@pytest.mark.parametrize("vector", [None, [1.0, float("inf")], [1.0, None]])
def test_what_is_no_vector_is_refused(tmp_path, vector):
    with pytest.raises(BadInput, match=r"'embedding' .* row 3"):
        load_items(write(tmp_path / "items.parquet", with_vectors([*VECTORS[:2], vector, VECTORS[3]])), MAPPED)


def test_a_column_of_words_is_told(tmp_path):
    with pytest.raises(BadInput, match="'embedding' holds no number, NaN or infinity in rows 2, 3, 4, 5"):
        load_items(write(tmp_path / "items.csv", with_vectors(["blue"] * 4)), MAPPED)


def test_a_column_that_is_merely_called_vector_is_left_alone(tmp_path):
    write(tmp_path / "log.csv", LOG)
    frame = pl.DataFrame(ITEMS).with_columns(pl.Series("vector", VECTORS, dtype=pl.Array(pl.Float64, 2)))
    frame.write_parquet(tmp_path / "items.parquet")
    dataset, _ = load_dataset(tmp_path / "log.csv", tmp_path / "items.parquet", LoadConfig())
    assert dataset.catalog.vectors is None
    assert dataset.catalog.items["vector"].to_list() == ["3.0|4.0", "0.0|2.0", "-1.0|0.5", "0.1|0.2"]


def test_they_are_kept_and_change_the_fingerprint(tmp_path):
    write(tmp_path / "log.csv", LOG)
    prints = []
    for shift in (0, 1):
        changed = [[x + shift, y] for x, y in VECTORS]
        items = write(tmp_path / "items.parquet", with_vectors(changed))
        dataset, _ = load_dataset(tmp_path / "log.csv", items, MAPPED)
        prints.append(dataset_fingerprint(dataset))
    assert prints[0] != prints[1]
    (tmp_path / "kept").mkdir()
    save_prepared(tmp_path / "kept", dataset, report={}, made_from={})
    kept, _ = load_prepared(tmp_path / "kept")
    assert np.array_equal(kept.catalog.vectors, dataset.catalog.vectors)
