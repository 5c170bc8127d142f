"""Memory that ran out is told with a setting that needs less."""

import pytest
import torch

from config import Config, with_overrides
from pipeline.memory import less_for_reranker, less_for_towers, memory_for
from pipeline.train_retriever import train_retriever
from pipeline.workspace import open_workspace
from store.errors import OutOfMemory
from tests.pipeline.shop import Shop, quiet


def test_memory_that_really_runs_out_is_told():
    with pytest.raises(OutOfMemory, match=r"while filling a table; .* untouched: try --set a=1"):  # noqa: SIM117
        with memory_for("filling a table", "--set a=1"):
            torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes do not fit"), memory_for("x", "y"):
        raise RuntimeError("shapes do not fit")


def test_the_settings_that_are_named_are_halves():
    config = with_overrides(Config(), ["retriever.sequence.batch_size=300", "reranker.train.users_per_pass=1"])
    assert "retriever.sequence.batch_size=150" in less_for_towers(config)
    assert less_for_reranker(config).split() == [
        *("--set", "reranker.train.users_per_pass=1"),
        *("--set", "reranker.train.checkpointing=true"),
    ]
    for option in less_for_towers(config).split()[1::2]:
        with_overrides(config, [option])  # what is named can be set


def test_a_training_without_memory_leaves_the_run_as_it_was(shop: Shop, tmp_path, monkeypatch):
    root = shop.copy(tmp_path)
    ws = open_workspace(root)
    before = ws.run.release()

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("pipeline.train_retriever.fit_retriever", full)
    with pytest.raises(OutOfMemory, match=r"retriever\.recency\.batch_size=32"):
        train_retriever(ws, log=quiet(ws), force=True)
    assert ws.run.release() == before
    assert open_workspace(root).run.has("retriever", before.retriever)
