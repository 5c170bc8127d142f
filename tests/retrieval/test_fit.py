import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.schema import Histories, Holdout
from index.faiss_index import FlatIndex
from retrieval.fit import FittedRetriever, Recipe, fit_retriever, recent_popularity, with_fitted_fusion
from retrieval.folder import load_retriever, load_vectors, read_card, read_recipe, save_retriever, save_vectors
from retrieval.retriever import TEXT, TOWERS, TRANSITIONS
from retrieval.validation import next_item_ndcg10
from store.errors import CorruptArtifact
from tests.retrieval.toy import catalog, circle, config, nobody, text_vectors

N = 20
TRAIN, VALIDATION = circle(N, users=80)
VECTORS = text_vectors(N)
DAY = 86_400


def silent(_: dict) -> None:
    pass


def never() -> None:
    raise AssertionError("a frozen encoder need not be loaded")


def fitted(validation: Holdout = VALIDATION, *, recipe: Recipe | None = None, log=silent) -> FittedRetriever:
    return fit_retriever(
        TRAIN,
        catalog([f"item {row}" for row in range(N)]),
        VECTORS,
        validation=validation,
        config=config(epochs=5),
        build_index=FlatIndex,
        load_encoder=never,
        log=log,
        recipe=recipe,
    )


@pytest.fixture(scope="module")
def made() -> FittedRetriever:
    return fitted()


def first_places(found: FittedRetriever, asked: Holdout) -> float:
    """Share of users whose next item comes first; the circle says which one it is."""
    rows = found.retriever.candidates(asked.histories, 1, exclude_known=False).item_rows[:, 0]
    return float((rows == asked.targets.item_rows).mean())


def test_a_planted_sequence_is_retrieved(made):
    assert first_places(made, VALIDATION) > 0.95
    assert made.recipe.fusion.weights[TRANSITIONS] > 0
    assert made.encoder is None
    assert made.recipe.epochs == made.records[0]["best_epoch"] >= 1


def test_the_same_seed_gives_the_same_retriever(made):
    again = fitted()
    np.testing.assert_array_equal(again.retriever.item_vectors, made.retriever.item_vectors)
    assert again.recipe == made.recipe


def test_a_fit_by_recipe_repeats_the_choices_without_validation(made):
    final = fitted(nobody(), recipe=made.recipe)
    assert final.recipe == made.recipe
    assert final.retriever.fusion == made.retriever.fusion
    np.testing.assert_array_equal(final.retriever.item_vectors, made.retriever.item_vectors)
    assert first_places(final, VALIDATION) > 0.95


def test_the_chosen_transitions_are_the_best_of_those_tried(made):
    log = []
    best = fitted(log=log.append).retriever.transitions
    told = next(entry for entry in log if entry["stage"] == "transitions")
    assert told["chosen"] == best.config.model_dump()
    figure = next_item_ndcg10(lambda part: best.scores(part).toarray(), VALIDATION, n_items=N)
    assert told["validation_ndcg@10"] == pytest.approx(figure, abs=1e-5)
    assert best.config.history_items in (10, 20, 30)


def test_fitting_the_fusion_again_does_not_depend_on_the_weights_before(made):
    log = []
    lopsided = replace(made.retriever.fusion, weights={TOWERS: 0.0, TRANSITIONS: 0.0, TEXT: 9.0})
    found = with_fitted_fusion(replace(made.retriever, fusion=lopsided), VALIDATION, log.append).fusion
    assert found.weights == pytest.approx(made.retriever.fusion.weights, rel=1e-4, abs=1e-6)
    assert found.typical == pytest.approx(made.retriever.fusion.typical)
    assert log[0]["stage"] == "fusion"


def test_recent_popularity_counts_the_last_days_and_breaks_ties_by_all_time():
    plain = Histories.of([[0, 0, 1, 2], [3, 0, 2]])
    days = np.array([1, 2, 39, 40, 3, 3, 41]) * DAY
    found = recent_popularity(Histories(plain.item_rows, plain.offsets, days), 5, 10)
    overall = np.array([3, 1, 2, 1, 0])
    np.testing.assert_allclose(found, np.array([0, 1, 2, 0, 0]) + overall / 8)
    assert found.dtype == np.float32
    assert recent_popularity(plain, 5, 10).tolist() == overall.tolist()
    unknown = np.full(7, Histories.NO_TIME)
    assert recent_popularity(Histories(plain.item_rows, plain.offsets, unknown), 5, 10).tolist() == overall.tolist()


def test_a_saved_retriever_gives_equal_candidates(made, tmp_path):
    save_retriever(tmp_path, made, text_vectors="key-of-vectors")
    loaded = load_retriever(tmp_path, text_vectors=VECTORS, index=FlatIndex)
    asked = Histories.of([[1, 2, 3], [], [7], [19, 0]])
    found, expected = loaded.candidates(asked, 8), made.retriever.candidates(asked, 8)
    np.testing.assert_array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
    card = read_card(tmp_path)
    assert (card.text_vectors, card.tuned, card.records) == ("key-of-vectors", False, made.records)
    assert read_recipe(tmp_path) == made.recipe


def test_a_fresh_process_gives_equal_candidates(made, tmp_path):
    save_retriever(tmp_path, made, text_vectors="key")
    save_vectors(tmp_path, VECTORS)
    program = f"""
from pathlib import Path
import numpy as np
from data.schema import Histories
from index.faiss_index import FlatIndex
from retrieval.folder import load_retriever, load_vectors
folder = Path({str(tmp_path)!r})
loaded = load_retriever(folder, text_vectors=load_vectors(folder), index=FlatIndex)
found = loaded.candidates(Histories.of([[4, 5], []]), 6)
np.savez(folder / "found.npz", rows=found.item_rows, score=found.score)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found, expected = np.load(tmp_path / "found.npz"), made.retriever.candidates(Histories.of([[4, 5], []]), 6)
    np.testing.assert_array_equal(found["rows"], expected.item_rows)
    np.testing.assert_allclose(found["score"], expected.score, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["retriever.json", "towers.safetensors", "tables.safetensors", "fusion.json", "transitions.parquet"]
)
@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_broken_file_is_named_with_the_way_out(made, tmp_path, name, fault):
    save_retriever(tmp_path, made, text_vectors="key")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if fault == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match="train-retriever"):
        load_retriever(tmp_path, text_vectors=VECTORS, index=FlatIndex)


def test_vectors_of_another_width_are_refused(made, tmp_path):
    save_retriever(tmp_path, made, text_vectors="key")
    with pytest.raises(CorruptArtifact):
        load_retriever(tmp_path, text_vectors=text_vectors(N, width=7), index=FlatIndex)


def test_saved_vectors_come_back_and_broken_ones_are_refused(tmp_path):
    save_vectors(tmp_path, VECTORS)
    np.testing.assert_array_equal(load_vectors(tmp_path), VECTORS)
    (tmp_path / "vectors.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptArtifact):
        load_vectors(tmp_path)
