"""Rounds of tuning within their budget, across kills."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from index.faiss_index import FlatIndex
from retrieval import fit as fit_module
from retrieval.encode import EncoderConfig, centred, encode_texts
from retrieval.finetune import EncoderTuner, FinetuneConfig
from retrieval.fit import fit_retriever
from retrieval.rounds import tune_encoder
from retrieval.towers import TowerConfig, TwoTowers
from retrieval.train import TrainConfig, TrainRecord, train_towers
from store.checkpoint import Checkpoints
from store.hardware import Precision
from tests.rerank.tiny_bert import WORDS, write_tiny_bert
from tests.retrieval.toy import catalog, circle, config, nobody

N = 20
TEXTS = [f"{WORDS[row]} {WORDS[row + 1]}" for row in range(N)]
TRAIN, VALIDATION = circle(N, users=40)
TOWERS = TowerConfig(text_dim=8, residual_dim=8, history_items=4, epochs=1, batch_size=64)
TRAINING = TrainConfig(precision=Precision.FLOAT32)


def silent(_: dict) -> None:
    pass


def encoder_from(model: Path) -> Any:
    return SentenceTransformer(modules=[Transformer(str(model)), Pooling(32)], device="cpu")


def trained(vectors: np.ndarray) -> TwoTowers:
    torch.manual_seed(0)
    model = TwoTowers(torch.from_numpy(centred(vectors)), TOWERS)
    train_towers(model, TRAIN, nobody(), config=TRAINING, name="toy", log=silent)
    return model


def test_tuning_takes_its_share_of_the_budget_in_equal_parts_and_leaves_the_rest(tmp_path, monkeypatch):
    budgets, clock, said, kept = {}, [0.0], [], []

    def spent(model, train, validation, *, budget_minutes, name, checkpoints, **_):
        budgets.setdefault(name, []).append(budget_minutes)
        kept.append(checkpoints.folder.name)
        clock[0] += 60 * budget_minutes
        return TrainRecord(name, [], 1, 0.5 + 0.1 * len(kept), budget_minutes, "")

    monkeypatch.setattr(fit_module, "train_towers", spent)
    monkeypatch.setattr(fit_module.time, "monotonic", lambda: clock[0])
    encoder = encoder_from(write_tiny_bert(tmp_path))
    settings = config()
    settings = settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"budget_minutes": 20.0}),
            "finetune": FinetuneConfig(method="full", rounds=2, budget_share=0.5, schedule="exact", exact_steps=1),
        }
    )
    fit_retriever(
        TRAIN,
        catalog(TEXTS),
        encode_texts(encoder, TEXTS, settings.encoder),
        validation=VALIDATION,
        config=settings,
        build_index=FlatIndex,
        load_encoder=lambda _: encoder,
        log=silent,
        checkpoints=lambda name: Checkpoints(tmp_path / name, {"seed": 0}),
        say=said.append,
    )
    assert budgets["recency-1"][:3] == [2.0, 2.0, 2.0]  # the frozen encoder and two rounds, of 10 / 5 each
    assert budgets["recency-1"][3:] == pytest.approx([7.0])  # of the 14 that are left
    assert budgets["sequence-1"] == pytest.approx([7.0])
    assert kept[:3] == ["tuning-0-recency-1", "tuning-1-recency-1", "tuning-2-recency-1"]
    assert "2 rounds and 3 trainings of towers to judge them, at most 2 minutes each" in said[0]


def test_rounds_made_before_a_kill_are_not_made_again(tmp_path, monkeypatch):
    """Rounds and the towers between them are found in their checkpoints, and the result is the same."""
    model, reading = write_tiny_bert(tmp_path / "bert"), EncoderConfig(max_tokens=16)
    config = FinetuneConfig(method="full", schedule="stale", chunk_texts=5, precision="float32", learning_rate=5e-3)
    made: list[int] = []
    plain = EncoderTuner.round

    def counted(tuning, towers, train, text_vectors, *, number, **more):
        made.append(number)
        return plain(tuning, towers, train, text_vectors, number=number, **more)

    monkeypatch.setattr(EncoderTuner, "round", counted)

    def tuned(folder: Path, fits: int) -> Any:
        fresh = encoder_from(model)
        vectors = encode_texts(fresh, TEXTS, reading)

        def fit_towers(text_vectors: np.ndarray, number: int) -> tuple[TwoTowers, float]:
            if number == fits:
                raise KeyboardInterrupt
            return trained(text_vectors), float(number)

        return tune_encoder(
            EncoderTuner(fresh, TEXTS, config=config, training=TRAINING, reading=reading, log=silent),
            TRAIN,
            vectors,
            fit_towers=fit_towers,
            rounds=2,
            selects=True,
            checkpoints=lambda name: Checkpoints(folder / name, {"seed": 0}),
        )

    expected = tuned(tmp_path / "one", 9)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "two", 2)
    made.clear()
    again = tuned(tmp_path / "two", 9)
    assert made == []
    np.testing.assert_array_equal(again.text_vectors, expected.text_vectors)
    read = [encode_texts(found.encoder, TEXTS, reading) for found in (again, expected)]
    np.testing.assert_array_equal(*read)
