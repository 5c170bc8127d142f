"""An index that takes changes: at every moment what a fresh index of the same vectors would be."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import NO_ITEM
from index.changes import Change, ChangeKind
from index.faiss_index import INDEXES, FlatIndex
from index.live import FEW_TOMBSTONES, LiveIndex
from store.errors import BadInput, CorruptArtifact, Mismatch, UnknownId
from tests.contracts.test_vector_index import KINDS, exact

DIMENSION = 3


def whole(rng: np.random.Generator, count: int) -> np.ndarray:
    """Vectors whose inner products are exact, none of them zero."""
    vectors = rng.integers(-2, 3, (count, DIMENSION)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    return vectors


def put(index: LiveIndex, rows: np.ndarray, vectors: np.ndarray) -> None:
    index.apply([Change(ChangeKind.PUT, rows, vectors)])


def remove(index: LiveIndex, rows: np.ndarray) -> None:
    index.apply([Change(ChangeKind.REMOVE, rows)])


def agrees(index: LiveIndex, truth: dict[int, np.ndarray], rng: np.random.Generator) -> None:
    """Against exact search over all rows, of which those without a vector are never allowed."""
    n_rows = len(index)
    vectors, there = np.zeros((n_rows, DIMENSION)), np.zeros(n_rows, dtype=bool)
    for row, vector in truth.items():
        vectors[row], there[row] = vector, True
    assert index.live_rows.tolist() == sorted(truth)
    np.testing.assert_array_equal(index.vectors(index.live_rows), vectors[index.live_rows])
    queries, k = whole(rng, 4), int(rng.integers(1, n_rows + 3))
    exclude = [rng.integers(-1, n_rows + 3, rng.integers(0, n_rows + 1)) for _ in queries]
    mask = rng.random(n_rows) < 0.6
    for known in (None, exclude):
        for allowed in (None, mask):
            scores, rows = index.search(queries, k, exclude=known, allowed=allowed)
            expected = exact(vectors, queries, k, known, there if allowed is None else there & allowed)
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_array_equal(scores, expected[0].astype(np.float32))


@given(st.data())
def test_any_changes_agree_with_exact_search_over_what_is_left(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    size, gaps = data.draw(st.integers(1, 20)), data.draw(st.booleans())
    base = whole(rng, size)
    rows = np.sort(rng.choice(2 * size, size, replace=False)) if gaps else np.arange(size)
    index = LiveIndex(FlatIndex(base), rows=rows if gaps else None, allotted=2 * size if gaps else None)
    truth = dict(zip(rows.tolist(), base, strict=True))
    for _ in range(data.draw(st.integers(0, 6))):
        kind = data.draw(st.sampled_from(["add", "update", "remove", "again"]))
        gone = sorted(set(range(len(index))) - set(truth))
        if kind == "add":
            chosen = index.new_rows(int(rng.integers(0, 6)))
        else:
            pool = gone if kind == "again" else sorted(truth)
            chosen = rng.permutation(np.array(pool, dtype=np.int64))[: int(rng.integers(0, 6))]
        if kind == "remove":
            remove(index, chosen)
            for row in chosen.tolist():
                del truth[row]
        else:
            vectors = whole(rng, len(chosen))
            put(index, chosen, vectors)
            truth |= dict(zip(chosen.tolist(), vectors, strict=True))
        agrees(index, truth, rng)


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 10))
def test_adding_then_removing_gives_the_index_back(seed: int, size: int, added: int) -> None:
    rng = np.random.default_rng(seed)
    index = LiveIndex(FlatIndex(whole(rng, size)))
    queries = whole(rng, 5)
    before, live = index.search(queries, size + 2), index.live_rows
    rows = index.new_rows(added)
    put(index, rows, whole(rng, added))
    remove(index, rows)
    after = index.search(queries, size + 2)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(index.live_rows, live)
    assert index.new_rows(1).tolist() == [size + added]  # never given out again


@pytest.mark.parametrize("dead", [FEW_TOMBSTONES - 1, FEW_TOMBSTONES + 1])
def test_few_and_many_tombstones_give_the_same(dead: int) -> None:
    rng = np.random.default_rng(0)
    vectors = whole(rng, 2 * FEW_TOMBSTONES)
    index = LiveIndex(FlatIndex(vectors))
    gone = rng.permutation(len(vectors))[:dead]
    remove(index, gone)
    agrees(index, {row: vectors[row] for row in set(range(len(vectors))) - set(gone.tolist())}, rng)


@KINDS
@pytest.mark.parametrize("gone", [20, FEW_TOMBSTONES + 50])
def test_over_any_base_k_rows_come_back_and_never_a_removed_one(kind: str, gone: int) -> None:
    rng = np.random.default_rng(5)
    drawn = rng.standard_normal((640, 16)).astype(np.float32)
    vectors, more = np.split(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), [600])
    index = LiveIndex(INDEXES[kind](vectors))
    removed, moved = np.split(rng.permutation(600)[: gone + 10], [gone])
    remove(index, removed)
    rows = np.concatenate([index.new_rows(30), moved])
    put(index, rows, more)
    queries = np.concatenate([4 * more, rng.standard_normal((10, 16)).astype(np.float32)])
    mask = rng.random(len(index)) < 0.5
    for allowed in (None, mask):
        scores, found = index.search(queries, 25, exclude=[np.arange(50)] * 50, allowed=allowed)
        assert (found != NO_ITEM).all()
        assert not np.isin(found, removed).any()
        assert (found >= 50).all()
        assert allowed is None or allowed[found].all()
        assert all(len(set(line)) == 25 for line in found.tolist())
        for query, line, score in zip(queries, found, scores, strict=True):
            np.testing.assert_allclose(index.vectors(line) @ query, score, rtol=1e-3, atol=1e-3)
    _, found = index.search(4 * more, 1)
    np.testing.assert_array_equal(found[:, 0], rows)


def test_all_removed_finds_nothing() -> None:
    index = LiveIndex(FlatIndex(whole(np.random.default_rng(0), 4)))
    remove(index, np.arange(4))
    scores, rows = index.search(np.ones((2, DIMENSION), dtype=np.float32), 3)
    assert (rows == NO_ITEM).all()
    assert (scores == -np.inf).all()
    assert len(index.live_rows) == 0


@pytest.fixture
def index() -> LiveIndex:
    return LiveIndex(FlatIndex(np.eye(DIMENSION, dtype=np.float32)))


@pytest.mark.parametrize(
    ("rows", "vectors", "error", "told"),
    [
        ([3], np.ones((1, 4)), Mismatch, "dimension 3.*have 4"),
        ([3, 4], [[1, 1, 1], [np.nan, 0, 0]], BadInput, r"1 of 2 vectors hold NaN.*places: 1"),
        ([3, 4], [[0, np.inf, 0], [1, 0, 0]], BadInput, r"1 of 2 vectors hold NaN or infinity.*places: 0"),
        ([0, 0], np.ones((2, 3)), BadInput, "1 of 2 rows stand twice"),
        ([3], np.ones((2, 3)), BadInput, "1 rows but 2 vectors"),
        ([5], np.ones((1, 3)), UnknownId, "next row to be allotted is 3, found 5"),
        ([-1], np.ones((1, 3)), UnknownId, "next row"),
    ],
)
def test_what_cannot_be_put_is_refused_and_changes_nothing(index: LiveIndex, rows, vectors, error, told) -> None:
    change = Change(ChangeKind.PUT, np.array(rows), np.asarray(vectors, dtype=np.float32))
    with pytest.raises(error, match=told):
        index.refuse(change)
    with pytest.raises(CorruptArtifact, match=r"does not fit.*rollback"):
        index.apply([change])
    assert index.live_rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [ChangeKind.REMOVE, ChangeKind.NOTE])
def test_what_is_not_there_cannot_be_removed_or_noted(index: LiveIndex, kind: ChangeKind) -> None:
    remove(index, np.array([1]))
    with pytest.raises(UnknownId, match=r"3 of 4 rows are not in the index: 1, 7, -1"):
        index.refuse(Change(kind, np.array([0, 1, 7, -1])))
    with pytest.raises(IndexError, match="row 1"):
        index.vectors(np.array([0, 1]))


def test_a_note_changes_no_answer(index: LiveIndex) -> None:
    before = index._state.delta
    index.apply([Change(ChangeKind.NOTE, np.array([1]), beside={"price": np.array([3.5])})])
    assert index._state.delta.rows is before.rows
    assert index.live_rows.tolist() == [0, 1, 2]


def test_a_frozen_view_does_not_change(index: LiveIndex) -> None:
    put(index, index.new_rows(1), np.full((1, 3), 5, dtype=np.float32))
    view = index.frozen()
    put(index, np.array([3, 0]), np.full((2, 3), 7, dtype=np.float32))
    remove(index, np.array([1]))
    assert (view.live_rows.tolist(), index.live_rows.tolist()) == ([0, 1, 2, 3], [0, 2, 3])
    assert (len(view), view.has(np.array([1])).tolist()) == (4, [True])
    assert view.vectors(np.array([3, 0])).tolist() == [[5, 5, 5], [1, 0, 0]]
    assert view.search(np.ones((1, 3), dtype=np.float32), 4)[1].tolist() == [[3, 0, 1, 2]]
    assert index.search(np.ones((1, 3), dtype=np.float32), 4)[1].tolist() == [[0, 3, 2, NO_ITEM]]


def test_a_change_comes_back_from_its_bytes() -> None:
    beside = {"text": np.ones((2, 5), dtype=np.float32), "items": np.frombuffer(b"PAR1", dtype=np.uint8)}
    change = Change(ChangeKind.PUT, np.array([4, 5]), np.eye(2, dtype=np.float32), beside)
    back = Change.from_bytes(change.to_bytes())
    assert back.kind is ChangeKind.PUT
    np.testing.assert_array_equal(back.rows, change.rows)
    np.testing.assert_array_equal(back.vectors, change.vectors)
    assert {name: array.tolist() for name, array in back.beside.items()} == {
        name: array.tolist() for name, array in beside.items()
    }
    with pytest.raises(CorruptArtifact, match="no change of an index"):
        Change.from_bytes(b"something else")


def test_searches_beside_a_writer_see_whole_changes() -> None:
    """Every change gives both of two rows one value: a search that saw half of one would find two values."""
    base = np.array([[1.0, 0, 0], [1.0, 0, 0]], dtype=np.float32)
    index = LiveIndex(FlatIndex(base))
    mixed: list[tuple[float, ...]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            scores, _ = index.search(np.array([[1, 0, 0]], dtype=np.float32), 3)
            if scores[0, 0] != scores[0, 1] or scores[0, 2] != -np.inf:
                mixed.append(tuple(scores[0].tolist()))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(2, 400):
        put(index, np.arange(2), np.full((2, 3), value, dtype=np.float32))
    done.set()
    reader.join()
    assert mixed == []
