"""The plan by measurement: what is chosen reaches its target, fits its memory, and is told with its figures."""

import numpy as np
import pytest
import torch

from bench.vectors import ClusteredVectors
from index.build import IndexConfig, plan_index, told
from index.faiss_index import FlatIndex, load_index
from index.layout import IndexKind
from index.manifest import read_manifest
from index.measure import recall_of
from store.errors import BadInput

DRAWN = ClusteredVectors(3_000, 32, clusters=50, seed=2)
VECTORS, USERS = DRAWN.all(), DRAWN.users(200)
OTHERS = ClusteredVectors(3_000, 32, clusters=50, seed=2).queries(100)


def config(**settings: object) -> IndexConfig:
    return IndexConfig.model_validate({"sample_users": 80, "recall_at": 20, **settings})


def test_a_small_catalog_is_flat_and_nothing_else_is_tried() -> None:
    planned = plan_index(VECTORS, USERS, config(flat_below_ms=1e3))
    assert planned.index.kind is IndexKind.FLAT
    assert [trial.layout.kind for trial in planned.report] == [IndexKind.FLAT]


@pytest.fixture(scope="module")
def measured():
    said: list[str] = []
    return plan_index(VECTORS, USERS, config(flat_below_ms=0), say=said.append), said


def test_auto_takes_the_fastest_of_those_that_reach_the_target(measured) -> None:
    planned, said = measured
    report = planned.report
    assert {trial.layout.kind for trial in report} == set(IndexKind) - {IndexKind.IVF_PQ, IndexKind.MILVUS}
    assert report[0].layout == planned.index.layout
    reaching = [trial for trial in report if trial.recall >= 0.99]
    assert report[0].p50_ms == min(trial.p50_ms for trial in reaching)
    assert sorted(said) == sorted(map(told, report))


@pytest.mark.parametrize("kind", [kind for kind in IndexKind if kind not in (IndexKind.FLAT, IndexKind.MILVUS)])
def test_each_kind_reaches_the_target_on_users_it_was_not_tuned_on(kind: IndexKind) -> None:
    planned = plan_index(VECTORS, USERS, config(kind=kind))
    assert planned.index.kind is kind
    _, found = planned.index.search(OTHERS, 20)
    _, best = FlatIndex(VECTORS).search(OTHERS, 20)
    assert recall_of(found, best).mean() >= 0.98


def test_a_higher_target_takes_no_less_effort() -> None:
    low, high = (plan_index(VECTORS, USERS, config(kind="ivf-flat", recall_target=target)) for target in (0.7, 0.999))
    assert low.report[0].effort.probes < high.report[0].effort.probes


def test_the_memory_is_kept() -> None:
    planned = plan_index(VECTORS, USERS, config(flat_below_ms=0, memory_mb=0.1))
    assert planned.index.searched_bytes * len(VECTORS) <= 0.1e6
    assert planned.index.kind in (IndexKind.IVF_RABITQ, IndexKind.IVF_FASTSCAN)
    assert planned.report[0].kept_bytes == 4 * 32


def test_too_little_memory_is_told_with_what_it_would_take() -> None:
    with pytest.raises(BadInput, match=r"no kind of index.*within 0 MB; .*would do it with 1 MB: --memory-mb 1"):
        plan_index(VECTORS, USERS, config(flat_below_ms=0, memory_mb=0.01))
    with pytest.raises(BadInput, match=r"no index of kind flat.*flat would do it with 1 MB"):
        plan_index(VECTORS, USERS, config(kind="flat", memory_mb=0.01))


def test_a_target_out_of_reach_names_what_comes_nearest() -> None:
    with pytest.raises(BadInput, match=r"ivf-pq comes nearest with 0\.\d+: --recall-target 0\.\d+;.*keep_vectors"):
        plan_index(VECTORS, USERS, config(kind="ivf-pq", keep_vectors=False))


def test_without_users_some_of_the_vectors_are_asked() -> None:
    none = np.zeros((0, 32), dtype=np.float32)
    assert plan_index(VECTORS, none, config(kind="ivf-flat")).report[0].recall >= 0.99


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-flat", "ivf-rabitq"])
def test_halved_storage_scores_what_is_stored_and_comes_back(kind: str, storage: str, tmp_path) -> None:
    planned = plan_index(VECTORS, USERS, config(kind=kind, storage=storage, recall_target=0.9))
    index = planned.index
    stored = index.vectors(np.arange(len(VECTORS)))
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}[storage]
    np.testing.assert_allclose(stored, VECTORS, atol=rounding)
    assert not np.array_equal(stored, VECTORS)
    scores, rows = index.search(OTHERS, 5)
    # Where the processor multiplies in bfloat16 (AVX512-BF16), FAISS rounds the query as well; IVF-flat what is left of
    # it beside the centroid.
    rounded = torch.from_numpy(OTHERS).bfloat16().float().numpy() if storage == "bfloat16" else OTHERS
    errors = [np.abs(scores - np.einsum("bd,bkd->bk", asked, stored[rows])).max() for asked in (OTHERS, rounded)]
    assert min(errors) < (2**-9 if (kind, storage) == ("ivf-flat", "bfloat16") else 1e-5)
    index.save(tmp_path, retriever="r", catalog="c", report=planned.report)
    again = load_index(tmp_path)
    np.testing.assert_array_equal(again.search(OTHERS, 5)[1], rows)
    manifest = read_manifest(tmp_path)
    assert (manifest.layout.storage, manifest.report) == (storage, planned.report)


def test_recall_counts_what_is_found_of_the_best() -> None:
    best = np.array([[0, 1], [2, 3]])
    assert recall_of(np.array([[1, 0, 9], [3, -1, -1]]), best).tolist() == [1.0, 0.5]
