"""A copy in memory in the place of a GPU's: what lies around FAISS's own search is the same."""

import pytest

from index.layout import FAISS


def copies_stand_for_replicas(patch: pytest.MonkeyPatch) -> None:
    """Makes `index.gpu` take a copy of the master for what FAISS would put on a GPU."""
    patch.setattr(FAISS, "StandardGpuResources", object, raising=False)
    patch.setattr(FAISS, "index_cpu_to_gpu", lambda resources, device, one: FAISS.clone_index(one), raising=False)
    patch.setattr(FAISS, "get_num_gpus", lambda: 1, raising=False)
