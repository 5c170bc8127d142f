"""A replica on a GPU answers as its master does, and changes with it."""

import numpy as np
import pytest

from bench.vectors import ClusteredVectors
from index.faiss_index import INDEXES
from index.gpu import ON_GPU, GpuIndex, gpus
from index.layout import IndexKind
from index.measure import recall_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpus() == 0, reason="this build of FAISS finds no GPU")]
DRAWN = ClusteredVectors(4_000, 32, clusters=60, seed=6)


@pytest.mark.parametrize("kind", sorted(ON_GPU))
def test_the_replica_answers_as_the_master(kind: IndexKind) -> None:
    vectors, asked = DRAWN.all(), DRAWN.users(40)
    master = INDEXES[kind](vectors)
    replica = GpuIndex(master)
    exclude = [np.arange(place) for place in range(40)]
    scores, rows = replica.search(asked, 20, exclude=exclude)
    expected_scores, expected_rows = master.search(asked, 20, exclude=exclude)
    assert recall_of(rows, expected_rows).mean() > 0.98
    np.testing.assert_allclose(scores, expected_scores, atol=1e-3)
    allowed = np.arange(4_000) % 7 == 0
    np.testing.assert_array_equal(
        replica.search(asked, 5, allowed=allowed)[1], master.search(asked, 5, allowed=allowed)[1]
    )


def test_a_new_master_is_swapped_in_whole() -> None:
    vectors = DRAWN.all()
    replica = GpuIndex(INDEXES[IndexKind.FLAT](vectors))
    replica.replace(INDEXES[IndexKind.FLAT](vectors[::-1].copy()))
    _, rows = replica.search(vectors[:5], 1)
    assert rows[:, 0].tolist() == [3_999, 3_998, 3_997, 3_996, 3_995]
