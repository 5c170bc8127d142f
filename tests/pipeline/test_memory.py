"""Memory that ran out is told with a setting that needs less."""

import pytest
import torch

from config import Config, with_overrides
from pipeline.answer import Wish, answer
from pipeline.build_index import build_index
from pipeline.evaluate import EvaluationOptions, evaluate_run
from pipeline.export import Asked, export
from pipeline.memory import less_for_index, less_for_reranker, less_for_towers, memory_for
from pipeline.train_retriever import train_retriever
from pipeline.workspace import Workspace, open_workspace
from recommend.recommender import Rerank
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
    assert "finetune" not in less_for_towers(config)
    assert "text" not in less_for_towers(config)
    assert less_for_reranker(config, "encoder").split() == [
        *("--set", "reranker.train.checkpointing=true"),
        *("--set", "reranker.encoder.max_batch_tokens=4096"),
    ]
    assert less_for_index(config) == "--set index.kind=flat --set index.storage=float16"
    for option in less_for_towers(config).split()[1::2]:
        with_overrides(config, [option])  # what is named can be set


def test_what_tunes_and_reads_texts_is_named_where_it_does():
    config = with_overrides(Config(), ["retriever.finetune.method=lora", "retriever.text.copies=1"])
    told = less_for_towers(config)
    for setting in ("finetune.chunk_texts=32", "text.batch_size=256", "text.most_positions=50000"):
        assert f"--set retriever.{setting}" in told


def test_what_is_at_its_least_is_not_named_again():
    least = ("users_per_pass=1", "checkpointing=true", "list_size=2")
    config = with_overrides(Config(), [f"reranker.train.{setting}" for setting in least])
    assert less_for_reranker(config, "decoder") == "--set reranker.decoder.max_batch_tokens=4096"
    config = with_overrides(config, ["reranker.decoder.max_batch_tokens=64"])
    assert less_for_reranker(config, "decoder") == "a smaller model, or a machine with more memory"


def test_lists_without_memory_are_told_with_what_makes_them_small(weighed: Workspace, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("recommend.recommender.Recommender.retrieve", full)
    anew = "'train-reranker --set reranker.encoder.max_batch_tokens=4096' and again"
    with pytest.raises(OutOfMemory, match=rf"while evaluating; .* try --users \d+ --no-baselines, or {anew}"):
        evaluate_run(weighed, EvaluationOptions(), log=quiet(weighed))
    wanted = {"k": 3, "depth": None, "users": 5, "rerank": Rerank.AUTO, "towers_only": False, "log": quiet(weighed)}
    with pytest.raises(OutOfMemory, match=f"while recommending; .* try --rerank never, or {anew}"):
        export(weighed, Asked.VALIDATION, tmp_path / "lists.parquet", **wanted)
    monkeypatch.setattr("recommend.recommender.Recommender.recommend", full)
    with pytest.raises(OutOfMemory, match=f"while recommending; .* try --rerank never, or {anew}"):
        answer(weighed, Wish(history=weighed.dataset.catalog.vocabulary.ids[0]), as_json=True)
    monkeypatch.setattr("pipeline.build_index.plan_index", full)
    with pytest.raises(OutOfMemory, match=r"while building the index; .* index\.storage=float16"):
        build_index(weighed, log=quiet(weighed))


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
