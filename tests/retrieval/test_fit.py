import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data.schema import Histories, Holdout
from fusion.linear import LinearFusion, Transform
from index.faiss_index import FlatIndex
from retrieval import fit as fit_module
from retrieval.encode import TextSpace, centred
from retrieval.fit import FittedRetriever, drawn, fit_retriever
from retrieval.folder import load_retriever, load_vectors, read_card, read_recipe, save_retriever, save_vectors
from retrieval.groundwork import fit_transitions, recent_popularity
from retrieval.retriever import TEXT, TRANSITIONS, Retriever, RetrieverConfig
from retrieval.topics import beside
from retrieval.train import TrainRecord
from retrieval.validation import catalog_ndcg10
from retrieval.weighing import with_fitted_fusion
from store.checkpoint import Checkpoints
from store.errors import CorruptArtifact
from tests.retrieval.toy import catalog, circle, config, is_mapped, nobody, text_vectors

N = 20
TRAIN, VALIDATION = circle(N, users=80)
VECTORS = text_vectors(N)
TEXTS = [f"item {row}" for row in range(N)]
DAY = 86_400


def silent(_: dict) -> None:
    pass


def never(_: object) -> None:
    raise AssertionError("a frozen encoder need not be loaded")


def fitted(
    validation: Holdout = VALIDATION,
    *,
    train: Histories = TRAIN,
    vectors: np.ndarray = VECTORS,
    settings: RetrieverConfig | None = None,
    **more,
) -> FittedRetriever:
    return fit_retriever(
        train,
        catalog([f"item {row}" for row in range(len(vectors))]),
        vectors,
        **{
            "validation": validation,
            "config": settings or config(epochs=5, copies=2),
            "build_index": FlatIndex,
            "load_encoder": never,
            "log": silent,
            **more,
        },
    )


@pytest.fixture(scope="module")
def made() -> FittedRetriever:
    return fitted()


def first_places(found: FittedRetriever, asked: Holdout, *, exclude_known: bool = True) -> float:
    """Share of users whose next item comes first; the circle says which one it is."""
    rows = found.retriever.candidates(asked.histories, 1, exclude_known=exclude_known).item_rows[:, 0]
    return float((rows == asked.targets.item_rows).mean())


def test_a_planted_sequence_is_retrieved(made):
    assert first_places(made, VALIDATION) > 0.95
    assert made.recipe.fusion.weights[TRANSITIONS] > 0
    assert made.encoder is None


def test_every_member_is_trained_from_a_seed_of_its_own_and_recorded(made):
    names = ["recency-1", "recency-2", "sequence-1", "sequence-2"]
    assert [member.name for member in made.retriever.towers.members] == names
    assert [record["name"] for record in made.records] == names
    assert made.recipe.epochs == {record["name"]: record["best_epoch"] for record in made.records}
    assert all(1 <= epochs <= 5 for epochs in made.recipe.epochs.values())
    for one, other in ((0, 1), (2, 3)):
        first, second = (made.retriever.towers.members[place].towers.item_vectors() for place in (one, other))
        assert not np.allclose(first, second)
    np.testing.assert_array_equal(made.retriever.item_vectors, made.retriever.towers.item_vectors())


def unweighed(found: Retriever) -> Retriever:
    return replace(found, towers=replace(found.towers, weights=dict.fromkeys(found.towers.kinds, 1.0)))


def test_the_kinds_are_weighed_in_the_search_as_validation_says(made):
    """By the fit of their scores alone, on the whole unions of a search that weighs them equally."""
    found = unweighed(made.retriever)
    unions = found.unions(VALIDATION.histories)
    expected = LinearFusion.fit(unions, VALIDATION.targets, dict.fromkeys(found.towers.kinds, Transform.RAW))
    weights = made.retriever.towers.weights
    assert weights == pytest.approx(expected.weights, rel=1e-3, abs=1e-5)
    assert made.recipe.tower_weights == weights
    assert max(weights.values()) > 0


def test_where_people_take_again_what_they_have_the_fusion_is_fitted_on_lists_that_hold_it(made):
    last = Histories.of(VALIDATION.histories.last(1).tolist())
    again = replace(VALIDATION, targets=last, exclude_known=False)
    found = with_fitted_fusion(made.retriever, again, silent)
    assert first_places(replace(made, retriever=found.retriever), again, exclude_known=False) > 0.5
    nothing = with_fitted_fusion(made.retriever, replace(again, exclude_known=True), silent)
    assert found.ndcg10 > nothing.ndcg10 == 0


def test_a_member_of_one_fit_is_no_member_of_a_fit_with_the_next_seed(made):
    train = config().train.model_copy(update={"seed": 1})
    other = fitted(settings=config(epochs=5, copies=2).model_copy(update={"train": train}))
    vectors = [member.towers.item_vectors() for found in (made, other) for member in found.retriever.towers.members[:2]]
    assert all(not np.allclose(vectors[i], vectors[j]) for i in range(4) for j in range(i))


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


class Killed(Exception):
    """Stands for a kill."""


def test_a_fit_goes_on_with_the_member_at_which_it_was_killed(made, tmp_path):
    def checkpoints(name: str) -> Checkpoints:
        return Checkpoints(tmp_path / name, {"seed": 0})

    def log(entry: dict) -> None:
        if entry.get("stage") == "sequence-1" and entry.get("epoch") == 3:
            raise Killed

    with pytest.raises(Killed):
        fitted(checkpoints=checkpoints, log=log)
    told: list[dict] = []
    again = fitted(checkpoints=checkpoints, log=told.append)
    epochs = [(entry["stage"], entry.get("event", entry.get("epoch"))) for entry in told if "epoch" in entry]
    assert epochs[0] == ("recency-1", "resumed")
    assert ("recency-1", 1) not in epochs  # what was finished is not trained again
    assert [epoch for stage, epoch in epochs if stage == "sequence-1"][:2] == ["resumed", 3]
    np.testing.assert_array_equal(again.retriever.item_vectors, made.retriever.item_vectors)
    assert again.recipe == made.recipe


def test_members_share_the_budget_and_what_one_leaves_goes_to_the_others(monkeypatch):
    shares = []

    def spent(model, train, validation, *, budget_minutes, name, config, **_):
        shares.append(budget_minutes)
        return TrainRecord(name, [], 0, 0.0, {"recency-1": 1.0}.get(name, 4.0), "")

    monkeypatch.setattr(fit_module, "train_towers", spent)
    settings = config(copies=2)
    fitted(settings=settings.model_copy(update={"train": settings.train.model_copy(update={"budget_minutes": 16.0})}))
    assert shares == [16 / 4, (16 - 1) / 3, (16 - 5) / 2, 16 - 9]


def test_a_member_whose_minutes_others_took_still_ends(monkeypatch):
    """A budget below 0 would never be used up."""
    shares = []

    def spent(model, train, validation, *, budget_minutes, name, **_):
        shares.append(budget_minutes)
        return TrainRecord(name, [], 0, 0.0, 20.0, "")

    monkeypatch.setattr(fit_module, "train_towers", spent)
    settings = config(copies=2)
    fitted(settings=settings.model_copy(update={"train": settings.train.model_copy(update={"budget_minutes": 16.0})}))
    assert all(share > 0 for share in shares)


def test_one_kind_alone_can_be_trained():
    for left_out, kept in (("recency", "sequence"), ("sequence", "recency")):
        settings = config(epochs=5)
        none = getattr(settings, left_out).model_copy(update={"copies": 0})
        found = fitted(settings=settings.model_copy(update={left_out: none}))
        assert [member.name for member in found.retriever.towers.members] == [f"{kept}-1"]
        assert set(found.recipe.fusion.weights) >= {kept, TRANSITIONS, TEXT}
        assert left_out not in found.recipe.fusion.weights
        assert first_places(found, VALIDATION) > 0.9


def test_the_chosen_transitions_are_the_best_of_those_tried(made):
    log = []
    best = fitted(log=log.append, settings=config(epochs=1)).retriever.transitions
    told = next(entry for entry in log if entry["stage"] == "transitions")
    assert told["chosen"] == best.config.model_dump()
    figure = catalog_ndcg10(lambda part: best.scores(part).toarray(), VALIDATION, n_items=N)
    assert told["validation_ndcg@10"] == pytest.approx(figure, abs=1e-5)
    assert best.config.history_items in (10, 20, 30)


@pytest.mark.parametrize("timed", [False, True])
def test_only_a_log_without_time_may_count_pairs_the_same_both_ways(timed):
    log = []
    train = TRAIN
    if timed:
        train = Histories(TRAIN.item_rows, TRAIN.offsets, np.arange(len(TRAIN.item_rows)) * DAY)
    backwards = Histories.of([[row] for row in range(N)]), Histories.of([[(row - 1) % N] for row in range(N)])
    asked = Holdout("validation", np.arange(N), *backwards)
    nobody_speaks = sp.csr_matrix((N, N), dtype=np.float32)
    found = fit_transitions(train, nobody_speaks, validation=asked, config=config(), log=log.append, chosen=None)
    assert (found.config.backward, found.config.gap_decay) == ((0.5, 0.8) if timed else (1.0, 1.0))


def test_fitting_the_fusion_again_does_not_depend_on_the_weights_before(made):
    log = []
    weights = dict.fromkeys(made.retriever.fusion.weights, 0.0) | {TEXT: 9.0}
    lopsided = replace(unweighed(made.retriever), fusion=replace(made.retriever.fusion, weights=weights))
    found = with_fitted_fusion(lopsided, VALIDATION, log.append).retriever
    assert found.fusion.weights == pytest.approx(made.retriever.fusion.weights, rel=1e-2, abs=1e-3)
    assert found.fusion.typical == pytest.approx(made.retriever.fusion.typical)
    assert log[0]["stage"] == "fusion"


def test_only_some_validation_users_are_asked():
    settings = config()
    few = settings.model_copy(update={"train": settings.train.model_copy(update={"validation_users": 7})})
    asked = drawn(VALIDATION, few.train)
    assert len(asked) == len(set(asked.user_rows)) == 7
    assert asked.user_rows.tolist() == sorted(asked.user_rows)
    np.testing.assert_array_equal(asked.targets.item_rows, VALIDATION.targets.item_rows[asked.user_rows])
    other = drawn(VALIDATION, few.train.model_copy(update={"seed": 1}))
    assert asked.user_rows.tolist() != other.user_rows.tolist()


@pytest.mark.parametrize(
    ("lists", "items"), [([[0]], 1), ([[0], []], 1), ([[0, 0, 0]], 1), ([[], []], 3), ([[1], [], [2]], 4)]
)
def test_logs_that_teach_nothing_still_make_a_retriever(lists, items):
    found = fitted(nobody(), train=Histories.of(lists), vectors=text_vectors(items)).retriever
    shown = found.candidates(Histories.of([[], [0]]), 3, exclude_known=False)
    assert shown.item_rows[0, 0] >= 0
    assert np.isfinite(shown.score[shown.present]).all()
    assert found.candidates(Histories.of([[0]]), 3).present.sum() == min(items - 1, 3)


def test_a_catalog_of_identical_texts_is_told_apart_by_what_people_took():
    found = fitted(vectors=np.repeat(text_vectors(1), N, axis=0), settings=config(epochs=5))
    assert first_places(found, VALIDATION) > 0.95


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
    loaded = load_retriever(tmp_path, texts=TEXTS, text_vectors=VECTORS, index=FlatIndex)
    asked = Histories.of([[1, 2, 3], [], [7], [19, 0]])
    found, expected = loaded.candidates(asked, 8), made.retriever.candidates(asked, 8)
    np.testing.assert_array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
    card = read_card(tmp_path)
    assert (card.text_vectors, card.tuned, card.records) == ("key-of-vectors", False, made.records)
    assert read_recipe(tmp_path) == made.recipe


def test_the_card_tells_what_the_fused_lists_reach_on_validation(made, tmp_path):
    lists = made.retriever.candidates(VALIDATION.histories, 10)
    places = (lists.item_rows == VALIDATION.targets.item_rows[:, None]).argmax(axis=1) + 1
    found = (lists.item_rows == VALIDATION.targets.item_rows[:, None]).any(axis=1)
    assert made.fused_ndcg10 == pytest.approx(np.where(found, 1 / np.log2(places + 1), 0).mean(), abs=0.02)
    save_retriever(tmp_path, made, text_vectors="key")
    assert read_card(tmp_path).fused_ndcg10 == made.fused_ndcg10
    assert fitted(nobody(), recipe=made.recipe).fused_ndcg10 == 0


def test_whitened_texts_are_what_all_reads_and_the_map_is_kept(tmp_path):
    skewed = VECTORS * np.linspace(1, 4, VECTORS.shape[1], dtype=np.float32)
    skewed /= np.linalg.norm(skewed, axis=1, keepdims=True)
    settings = config(epochs=1).model_copy(update={"whiten_text": True})
    found = fitted(vectors=skewed, settings=settings)
    white = TextSpace.of(skewed, whiten=True)(skewed)
    np.testing.assert_array_equal(found.retriever.text, white)
    topics = found.retriever.topics.read(found.retriever.words.vectors)
    np.testing.assert_array_equal(found.retriever.towers.text, beside(white, topics))
    assert np.abs(white - centred(skewed)).max() > 0.05
    save_retriever(tmp_path, found, text_vectors="key")
    loaded = load_retriever(tmp_path, texts=TEXTS, text_vectors=skewed, index=FlatIndex)
    query = np.ones((1, skewed.shape[1]), dtype=np.float32)
    np.testing.assert_array_equal(loaded.text_space(query), found.retriever.text_space(query))
    np.testing.assert_array_equal(loaded.text, white)
    asked = Histories.of([[1, 2, 3], [7]])
    np.testing.assert_array_equal(loaded.candidates(asked, 8).item_rows, found.retriever.candidates(asked, 8).item_rows)


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
loaded = load_retriever(folder, texts=[], text_vectors=load_vectors(folder), index=FlatIndex)
found = loaded.candidates(Histories.of([[4, 5], []]), 6)
np.savez(folder / "found.npz", rows=found.item_rows, score=found.score)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found, expected = np.load(tmp_path / "found.npz"), made.retriever.candidates(Histories.of([[4, 5], []]), 6)
    np.testing.assert_array_equal(found["rows"], expected.item_rows)
    np.testing.assert_allclose(found["score"], expected.score, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("retriever.json", "towers.safetensors", "tables.safetensors", "fusion.json"),
        "transitions.parquet",
        "taken.parquet",
        "taken_ever.parquet",
        "words.safetensors",
        "stand_ins.parquet",
    ],
)
@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_broken_file_is_named_with_the_way_out(made, tmp_path, name, fault):
    save_retriever(tmp_path, made, text_vectors="key")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if fault == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match="train-retriever"):
        load_retriever(tmp_path, texts=TEXTS, text_vectors=VECTORS, index=FlatIndex)


def test_vectors_of_another_width_are_refused(made, tmp_path):
    save_retriever(tmp_path, made, text_vectors="key")
    with pytest.raises(CorruptArtifact):
        load_retriever(tmp_path, texts=TEXTS, text_vectors=text_vectors(N, width=7), index=FlatIndex)


def test_saved_vectors_are_mapped_and_whoever_writes_to_them_does_so_alone(tmp_path):
    save_vectors(tmp_path, VECTORS)
    found = load_vectors(tmp_path)
    assert is_mapped(found)
    np.testing.assert_array_equal(found, VECTORS)
    found[:] = 0
    np.testing.assert_array_equal(load_vectors(tmp_path), VECTORS)


@pytest.mark.parametrize("vectors", [VECTORS.astype(np.float16), VECTORS[:0]])
def test_vectors_of_another_precision_and_none_at_all_are_read(tmp_path, vectors):
    save_vectors(tmp_path, vectors)
    found = load_vectors(tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_broken_vectors_are_refused(tmp_path, kept):
    save_vectors(tmp_path, VECTORS)
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArtifact):
        load_vectors(tmp_path)
