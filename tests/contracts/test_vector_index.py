"""What every VectorIndex must do, against exact search written out in float64.

What only exact kinds promise is skipped for the others; what those promise instead is tested on all.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.vectors import ClusteredVectors
from data.schema import NO_ITEM, Scores
from index.base import VectorIndex
from index.changes import Change, ChangeKind
from index.faiss_index import INDEXES, FlatIndex, load_index
from index.gpu import GpuIndex
from index.layout import IndexKind
from index.live import LiveIndex
from store.errors import BadInput, Mismatch
from tests.index.gpu_copy import copies_stand_for_replicas


def changed(vectors: Scores) -> LiveIndex:
    """Over a base of other vectors and fewer, changed until it holds these: put, removed, and put again."""
    count = len(vectors)
    known = count - count // 3
    before = vectors[:known].copy()
    before[::3] += 1
    index = LiveIndex(FlatIndex(before))
    replaced, back, new = np.arange(0, known, 3), np.arange(1, count, 4), np.arange(known, count)
    index.apply([Change(ChangeKind.PUT, rows, vectors[rows]) for rows in (replaced, new)])
    index.apply([Change(ChangeKind.REMOVE, back), Change(ChangeKind.PUT, back, vectors[back])])
    return index


def compacted(vectors: Scores) -> LiveIndex:
    """Over a base whose slots are not its rows, since some had been removed; those are put again."""
    gone = np.arange(1, len(vectors), 3)
    rows = np.setdiff1d(np.arange(len(vectors)), gone)
    index = LiveIndex(FlatIndex(vectors[rows]), rows=rows, allotted=len(vectors))
    index.apply([Change(ChangeKind.PUT, gone, vectors[gone])])
    return index


def replicated(vectors: Scores) -> GpuIndex:
    """On a copy in memory; tests/index/test_gpu.py is run on a GPU, too."""
    with pytest.MonkeyPatch.context() as patch:
        copies_stand_for_replicas(patch)
        return GpuIndex(FlatIndex(vectors))


AROUND: dict[str, Callable[[Scores], VectorIndex]] = {
    "changed": changed,
    "compacted": compacted,
    "replicated": replicated,
}
"""What stands around an index and promises the same."""
MADE: dict[str, Callable[[Scores], VectorIndex]] = {**INDEXES, **AROUND}
EXACT_KINDS = {IndexKind.FLAT: 60, IndexKind.MILVUS: 5, **dict.fromkeys(AROUND, 60)}
"""How many examples are tried on each; Milvus takes a second to make a collection."""
MILVUS = [
    pytest.mark.services,
    pytest.mark.skipif(
        not all(map(find_spec, ("pymilvus", "milvus_lite"))),
        reason="needs pymilvus and milvus-lite: python -m pip install -c requirements.lock --group milvus",
    ),
]


def over(names: Iterable[str], *, exact_only: bool = False) -> pytest.MarkDecorator:
    marked = []
    for name in names:
        marks = list(MILVUS) if name == IndexKind.MILVUS else []
        if exact_only and name not in EXACT_KINDS:
            marks.append(pytest.mark.skip(f"{name} may miss some of the best"))
        marked.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("kind", marked)


KINDS, ALL, EXACT = over(INDEXES), over(MADE), over(MADE, exact_only=True)
ROOT = Path(__file__).parents[2]


def exact(vectors, queries, k, exclude=None, allowed=None):
    """The definition: sort all items by falling inner product, then by row, without what must not be returned."""
    rows = np.full((len(queries), k), NO_ITEM)
    scores = np.full((len(queries), k), -np.inf)
    for place, query in enumerate(queries):
        inner = vectors.astype(np.float64) @ query.astype(np.float64)
        known = set() if exclude is None else set(exclude[place].tolist())
        known |= set() if allowed is None else set(np.flatnonzero(~allowed).tolist())
        ranked = sorted((-score, row) for row, score in enumerate(inner) if row not in known)[:k]
        for rank, (score, row) in enumerate(ranked):
            rows[place, rank], scores[place, rank] = row, -score
    return scores, rows


def whole_numbers(rng, shape, high=4):
    """Vectors whose inner products are exact, so that ties are ties in every order of summation."""
    return rng.integers(-high, high + 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def clustered() -> dict[str, Any]:
    """4,000 clustered vectors of unlike lengths, an index of each kind, and queries between them."""
    drawn = ClusteredVectors(4_000, 32, clusters=60, seed=4)
    lengths = np.random.default_rng(4).uniform(0.5, 1.5, (4_000, 1)).astype(np.float32)
    vectors = drawn.all() * lengths
    # Made when first asked for: not every machine has every kind.
    made = {kind: lru_cache(partial(make, vectors)) for kind, make in MADE.items()}
    return made | {"vectors": vectors, "asked": drawn.users(20)}


@EXACT
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_agrees_with_exact_search(kind: str, queries: int) -> None:
    rng = np.random.default_rng(1)
    vectors, asked = whole_numbers(rng, (300, 16), 50), whole_numbers(rng, (queries, 16), 50)
    scores, rows = MADE[kind](vectors).search(asked, 20)
    expected_scores, expected_rows = exact(vectors, asked, 20)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores)


@EXACT
def test_ties_and_exclusions_agree_with_exact_search(kind: str) -> None:
    @settings(max_examples=EXACT_KINDS[kind])
    @given(data=st.data())
    def agree(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
        n_items, queries = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 12))
        k = data.draw(st.integers(1, 70))
        vectors = whole_numbers(rng, (n_items, 3), 1)  # 27 different vectors at most: many ties
        asked = whole_numbers(rng, (queries, 3), 1)
        exclude = [rng.integers(0, n_items, rng.integers(0, n_items + 1)) for _ in range(queries)]
        index = MADE[kind](vectors)
        for known in (None, exclude):
            scores, rows = index.search(asked, k, exclude=known)
            expected_scores, expected_rows = exact(vectors, asked, k, known)
            np.testing.assert_array_equal(rows, expected_rows)
            np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))

    agree()


@EXACT
def test_allowed_rows_agree_with_exact_search(kind: str) -> None:
    @settings(max_examples=EXACT_KINDS[kind])
    @given(data=st.data())
    def agree(data: st.DataObject) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
        n_items, queries = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 12))
        k = data.draw(st.integers(1, 70))
        vectors = whole_numbers(rng, (n_items, 3), 1)
        asked = whole_numbers(rng, (queries, 3), 1)
        allowed = rng.random(n_items) < data.draw(st.sampled_from([0, 0.02, 0.3, 0.9, 1]))
        exclude = [rng.integers(0, n_items, rng.integers(0, n_items + 1)) for _ in range(queries)]
        for known in (None, exclude):
            scores, rows = MADE[kind](vectors).search(asked, k, exclude=known, allowed=allowed)
            expected_scores, expected_rows = exact(vectors, asked, k, known, allowed)
            np.testing.assert_array_equal(rows, expected_rows)
            np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))

    agree()


@ALL
@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("share", [1, 0.5, 0.1, 0.01, 0.001])
def test_finds_k_rows_and_nearly_the_best_whatever_a_filter_leaves(
    kind: str, queries: int, share: float, clustered: dict[str, Any]
) -> None:
    index, vectors, asked = clustered[kind](), clustered["vectors"], clustered["asked"][:queries]
    rng = np.random.default_rng(5)
    allowed = rng.random(len(vectors)) < share
    exclude = [rng.choice(len(vectors), rng.integers(0, 40), replace=False) for _ in asked]
    scores, rows = index.search(asked, 20, exclude=exclude, allowed=allowed if share < 1 else None)
    _, expected_rows = exact(vectors, asked, 20, exclude, allowed)
    assert ((rows != NO_ITEM).sum(1) == (expected_rows != NO_ITEM).sum(1)).all()
    found = [set(row) & set(expected) for row, expected in zip(rows, expected_rows, strict=True)]
    assert sum(map(len, found)) >= 0.95 * sum(len(set(expected)) for expected in expected_rows)
    for query, row, score, known in zip(asked, rows, scores, exclude, strict=True):
        there = row[row != NO_ITEM]
        assert len(set(there)) == len(there)
        assert allowed[there].all()
        assert not np.isin(there, known).any()
        np.testing.assert_allclose(score[: len(there)], index.vectors(there) @ query, rtol=1e-5, atol=1e-5)
        assert (np.diff(score[: len(there)]) <= 0).all()


@ALL
def test_a_filter_far_from_the_query_still_gives_k_rows(kind: str, clustered: dict[str, Any]) -> None:
    index, vectors, query = clustered[kind](), clustered["vectors"], clustered["asked"][:1]
    allowed = vectors @ query[0] < np.quantile(vectors @ query[0], 0.6)
    _, rows = index.search(query, 20, allowed=allowed)
    assert len(set(rows[0].tolist()) - {NO_ITEM}) == 20
    assert allowed[rows[0]].all()


@ALL
def test_rows_beyond_the_mask_are_not_allowed(kind: str) -> None:
    index = MADE[kind](np.eye(4, dtype=np.float32))
    _, rows = index.search(np.array([[1, 2, 3, 4]], dtype=np.float32), 3, allowed=np.array([True, False, True]))
    assert rows.tolist() == [[2, 0, NO_ITEM]]


@EXACT
def test_equal_vectors_come_back_by_lower_row(kind: str) -> None:
    index = MADE[kind](np.ones((500, 4), dtype=np.float32))
    for queries in (1, 20):
        _, rows = index.search(np.zeros((queries, 4), dtype=np.float32), 7)
        np.testing.assert_array_equal(rows, np.tile(np.arange(7), (queries, 1)))


@ALL
def test_more_than_the_catalog_gives_the_whole_catalog(kind: str) -> None:
    vectors = np.eye(3, dtype=np.float32)
    scores, rows = MADE[kind](vectors).search(np.array([[3, 2, 1]], dtype=np.float32), 5)
    assert rows.tolist() == [[0, 1, 2, NO_ITEM, NO_ITEM]]
    assert scores.tolist() == [[3, 2, 1, -np.inf, -np.inf]]


@ALL
def test_k_rows_come_back_however_many_are_excluded(kind: str) -> None:
    rng = np.random.default_rng(2)
    vectors, asked = whole_numbers(rng, (50, 4)), whole_numbers(rng, (3, 4))
    exclude = [np.arange(45), np.arange(0), np.arange(50)]
    _, rows = MADE[kind](vectors).search(asked, 5, exclude=exclude)
    assert sorted(rows[0]) == [45, 46, 47, 48, 49]
    assert (rows[1] != NO_ITEM).all()
    assert (rows[2] == NO_ITEM).all()


@ALL
@pytest.mark.parametrize("queries", [1, 2])
def test_rows_outside_the_index_may_be_excluded(kind: str, queries: int) -> None:
    index = MADE[kind](np.eye(4, dtype=np.float32))
    outside = np.array([NO_ITEM, 4, 5, 400])
    asked = np.tile(np.array([[4, 3, 2, 1]], dtype=np.float32), (queries, 1))
    _, rows = index.search(asked, 4, exclude=[outside] * queries)
    np.testing.assert_array_equal(rows, np.tile(np.arange(4), (queries, 1)))


@ALL
def test_vectors_of_noughts_score_nothing_and_are_found(kind: str) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    vectors[[5, 7, 290]] = 0
    index, asked = MADE[kind](vectors), rng.standard_normal((9, 8)).astype(np.float32)
    scores, rows = index.search(asked, 300)
    assert (np.sort(rows) == np.arange(300)).all()
    np.testing.assert_allclose(scores[np.isin(rows, [5, 7, 290])], 0, atol=1e-6)
    assert np.isfinite(index.search(asked, 10)[0]).all()
    np.testing.assert_array_equal(index.vectors(np.array([5, 290])), 0)


@ALL
def test_no_queries_give_no_lists(kind: str) -> None:
    scores, rows = MADE[kind](np.eye(4, dtype=np.float32)).search(np.zeros((0, 4), dtype=np.float32), 3)
    assert scores.shape == rows.shape == (0, 3)


@ALL
def test_refuses_what_it_cannot_search(kind: str) -> None:
    index = MADE[kind](np.eye(4, dtype=np.float32))
    with pytest.raises(Mismatch, match=r"dimension 4.*have 3"):
        index.search(np.ones((1, 3), dtype=np.float32), 2)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.ones((1, 4), dtype=np.float32), 0)
    with pytest.raises(ValueError, match="NaN"):
        index.search(np.full((1, 4), np.nan, dtype=np.float32), 2)
    with pytest.raises(ValueError, match="1 queries but 2 lists"):
        index.search(np.ones((1, 4), dtype=np.float32), 2, exclude=[np.arange(1), np.arange(1)])
    with pytest.raises(ValueError, match="int64"):
        index.search(np.ones((1, 4), dtype=np.float32), 2, allowed=np.arange(4))
    with pytest.raises(IndexError, match=r"4 to 4|row 4 "):
        index.vectors(np.array([4]))


@KINDS
def test_refuses_vectors_that_cannot_be_indexed(kind: IndexKind) -> None:
    broken = np.eye(4, dtype=np.float32)
    broken[1, 2], broken[3, 0] = np.nan, np.inf
    with pytest.raises(BadInput, match=r"2 of 4 .*first rows: 1, 3"):
        INDEXES[kind](broken)
    with pytest.raises(BadInput, match=r"\(0, 4\)"):
        INDEXES[kind](np.zeros((0, 4), dtype=np.float32))


@KINDS
def test_a_fresh_process_gives_the_same_answers(kind: IndexKind, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    index = INDEXES[kind](rng.standard_normal((200, 8)).astype(np.float32))
    asked = rng.standard_normal((5, 8)).astype(np.float32)
    index.save(tmp_path, retriever="r1", catalog="c1")
    np.save(tmp_path / "asked.npy", asked)
    script = (
        "import numpy as np, sys; from pathlib import Path; from index.faiss_index import load_index;"
        "folder = Path(sys.argv[1]); index = load_index(folder, retriever='r1', catalog='c1');"
        "scores, rows = index.search(np.load(folder / 'asked.npy'), 9);"
        "np.savez(folder / 'answers.npz', scores=scores, rows=rows)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True)
    answers = np.load(tmp_path / "answers.npz")
    scores, rows = index.search(asked, 9)
    np.testing.assert_array_equal(answers["rows"], rows)
    np.testing.assert_array_equal(answers["scores"], scores)
    assert len(load_index(tmp_path)) == 200
