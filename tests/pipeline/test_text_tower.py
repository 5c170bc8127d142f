"""Towers that read histories in words, through every step: they need the encoder wherever a history is asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.evaluate import EvaluationOptions, evaluate_run
from pipeline.export import Asked
from pipeline.fit_final import fit_final
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from retrieval import folder as saved
from retrieval.folder import read_card
from store.artifacts import Run
from tests.pipeline.commands import run
from tests.pipeline.oracle import exported
from tests.pipeline.shop import Shop, quiet, train

ON = "retriever.text.copies=1"
TUNED = ("retriever.finetune.method=lora", "retriever.finetune.learning_rate=0.05", "retriever.finetune.lora_rank=4")


@pytest.fixture(scope="module")
def made(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return train(tmp_path_factory.mktemp("worded") / "run", shop.log, shop, ON)


def towers_of(ws: Workspace) -> bytes:
    return (ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION)) / "towers.safetensors").read_bytes()


def test_the_report_shows_them_alone_and_what_they_add(made):
    report, _ = evaluate_run(made, EvaluationOptions(baselines=False), log=quiet(made))
    assert "text alone" in [system.name for system in report.systems]
    contributions = {found.source: found for found in report.contributions}
    # The words of an item say which one follows it, so the tower beats chance by far: some 10 of 60 items.
    assert contributions["text"].alone > 0.2
    card = read_card(made.run.artifact("retriever", made.retriever_key(FitKind.EVALUATION)))
    assert list(card.epochs) == ["recency-1", "sequence-1", "text-1"]


@pytest.mark.parametrize("more", [(), TUNED], ids=["frozen", "tuned"])
def test_a_fresh_process_recommends_the_same(shop, made, more, tmp_path):
    ws = train(tmp_path / "run", shop.log, shop, ON, *more) if more else made
    expected = exported(ws, Asked.NEXT, tmp_path, k=10)
    done = run("recommend", "--run", ws.run.root, "--all", "-k", 10, "-o", tmp_path / "fresh.parquet", cwd=tmp_path)
    assert done.code == 0, done.err
    found = pl.read_parquet(tmp_path / "fresh.parquet").join(expected, on=["user_id", "rank"], suffix="_expected")
    same = found["item_id"] == found["item_id_expected"]
    assert same.mean() > 0.99  # scores are rounded, and what ties may change places
    np.testing.assert_allclose(found["score"].to_numpy(), found["score_expected"].to_numpy(), rtol=5e-3, atol=5e-3)
    if more:
        assert read_card(ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION))).tuned
    done = run("recommend", "--run", ws.run.root, "--history", "i03,i04", "--json", cwd=tmp_path)
    assert json.loads(done.out)["items"], done.err


def test_the_final_fit_repeats_their_epochs(made):
    fit_final(made, log=quiet(made))
    cards = [
        read_card(made.run.artifact("retriever", made.retriever_key(fit)))
        for fit in (FitKind.EVALUATION, FitKind.FINAL)
    ]
    assert cards[0].epochs["text-1"] == cards[1].epochs["text-1"] > 0


class Killed(Exception):
    """Stands for a kill."""


class KilledLog(RunLog):
    """Ends in the third epoch of the text towers."""

    def record(self, entry: Mapping[str, Any]) -> None:
        super().record(entry)
        if entry.get("stage") == "text-1" and entry.get("epoch") == 3:
            raise Killed


def test_a_killed_training_goes_on_to_the_same_towers(shop, made, tmp_path):
    root = tmp_path / "run"
    ws = prepare(Run(root), shop.log, shop.catalog, users=None, config=made.config, log=quiet_of(root))
    with pytest.raises(Killed):
        train_retriever(ws, log=KilledLog(ws.run, "test", quiet=True))
    train_retriever(ws, log=quiet(ws))
    assert towers_of(ws) == towers_of(made)
    assert '"event": "resumed"' in (root / "log.jsonl").read_text()


def quiet_of(root: Path) -> RunLog:
    return RunLog(Run(root), "test", quiet=True)


def test_off_they_load_no_encoder(shop, monkeypatch, tmp_path):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nobody has to read")

    monkeypatch.setattr(saved, "load_encoder", never)
    ws = open_workspace(shop.copy(tmp_path))
    assert len(exported(ws, Asked.NEXT, tmp_path))
