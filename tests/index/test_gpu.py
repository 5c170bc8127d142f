"""A replica answers as its master does, and changes with it; on a GPU, and on a copy of the master in its place."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.vectors import ClusteredVectors
from index.build import IndexConfig, plan_index
from index.faiss_index import INDEXES, FlatIndex
from index.gpu import ON_GPU, GpuIndex, gpus, replicated
from index.layout import FAISS, IndexKind
from index.measure import recall_of
from index.published import open_live
from tests.index.gpu_copy import copies_stand_for_replicas

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(gpus() == 0, reason="this build of FAISS finds no GPU")]
DRAWN = ClusteredVectors(4_000, 32, clusters=60, seed=6)


@pytest.fixture(params=["copy", pytest.param("gpu", marks=needs_gpu)])
def replica(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the replica is: what lies around FAISS's own search is the same."""
    if request.param == "copy":
        copies_stand_for_replicas(monkeypatch)
    return str(request.param)


@pytest.mark.parametrize("kind", sorted(ON_GPU))
def test_it_answers_as_the_master(kind: IndexKind, replica: str) -> None:
    vectors, asked = DRAWN.all(), DRAWN.users(40)
    master = INDEXES[kind](vectors)
    found = replicated(master)
    assert isinstance(found, GpuIndex)
    assert (found.dimension, len(found)) == (32, 4_000)
    exclude = [np.arange(place) for place in range(40)]
    for known in (None, exclude):
        scores, rows = found.search(asked, 20, exclude=known)
        expected_scores, expected_rows = master.search(asked, 20, exclude=known)
        assert recall_of(rows, expected_rows).mean() > 0.98
        np.testing.assert_allclose(scores, expected_scores, atol=1e-3)
    allowed = np.arange(4_000) % 7 == 0
    np.testing.assert_array_equal(
        found.search(asked, 5, allowed=allowed)[1], master.search(asked, 5, allowed=allowed)[1]
    )
    np.testing.assert_array_equal(found.vectors(np.array([7])), master.vectors(np.array([7])))


def test_who_excludes_nearly_everything_gets_the_rest(replica: str) -> None:
    master = INDEXES[IndexKind.IVF_FLAT](DRAWN.all())
    left = np.array([5, 17, 3_000])
    exclude = [np.setdiff1d(np.arange(4_000), left)]
    _, rows = replicated(master).search(DRAWN.users(1), 3, exclude=exclude)
    assert sorted(rows[0].tolist()) == left.tolist()


def test_a_new_master_is_swapped_in_whole(replica: str) -> None:
    vectors = DRAWN.all()
    index = GpuIndex(FlatIndex(vectors))
    index.replace(FlatIndex(vectors[::-1].copy()))
    _, rows = index.search(vectors[:5], 1)
    assert rows[:, 0].tolist() == [3_999, 3_998, 3_997, 3_996, 3_995]


def test_an_opened_index_has_its_replica_and_its_delta(replica: str, tmp_path: Path) -> None:
    FlatIndex(DRAWN.all()).save(tmp_path, retriever="r", catalog="c")
    live = open_live(tmp_path)
    assert isinstance(live.base, GpuIndex)


def test_kinds_without_a_counterpart_and_full_gpus_stay_on_the_cpu(
    replica: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph, flat = INDEXES[IndexKind.HNSW](DRAWN.all()), FlatIndex(DRAWN.all())
    assert replicated(graph) is graph
    with pytest.raises(ValueError, match="hnsw has no counterpart on a GPU"):
        GpuIndex(graph)

    def full(*_: Any) -> None:
        raise RuntimeError("Error: out of memory\nbacktrace")

    monkeypatch.setattr(FAISS, "index_cpu_to_gpu", full, raising=False)
    assert replicated(flat) is flat
    assert caplog.messages == ["searching on the CPU: the index found no place on the GPU (Error: out of memory)"]


@pytest.mark.parametrize("kind", [IndexKind.FLAT, IndexKind.IVF_FLAT])
def test_a_plan_times_the_replica(kind: IndexKind, replica: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search, asleep = GpuIndex.search, 0.002

    def slow(self: GpuIndex, *asked: Any, **how: Any) -> Any:
        time.sleep(asleep)
        return search(self, *asked, **how)

    monkeypatch.setattr(GpuIndex, "search", slow)
    planned = plan_index(DRAWN.all(), DRAWN.users(40), IndexConfig(kind=kind, recall_at=10, recall_target=0.9))
    assert planned.report[0].p50_ms >= 1e3 * asleep


@pytest.mark.skipif(gpus() > 0, reason="there is a GPU")
def test_without_a_gpu_there_is_none() -> None:
    index = FlatIndex(DRAWN.all())
    assert replicated(index) is index
