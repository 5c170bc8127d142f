from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn import functional as F

from data.schema import Histories
from retrieval import finetune, objective
from retrieval.encode import EncoderConfig, centred, encode_texts
from retrieval.finetune import (
    EncoderTuner,
    FinetuneConfig,
    FinetuneMethod,
    Schedule,
    add_adapter,
    merge_adapter,
)
from retrieval.rounds import tune_encoder
from retrieval.towers import SequenceConfig, TowerConfig, TwoTowers
from retrieval.train import TrainConfig, train_towers, validation_ndcg10
from store.errors import NotFinite
from store.hardware import Precision
from tests.rerank.tiny_bert import WORDS, write_tiny_bert
from tests.retrieval.toy import circle, nobody

N = 12
TEXTS = [f"{WORDS[row]} {WORDS[(7 * row + 3) % 40]}" for row in range(N)]
TRAIN, VALIDATION = circle(N, users=20, length=6)
READING = EncoderConfig(max_tokens=16)
TRAINING = TrainConfig(precision=Precision.FLOAT32)
# Without dropout, so that the loss can be written out in one graph.
PLAIN = {"text_dim": 8, "dropout": 0.0, "residual_dropout": 0.0, "epochs": 2, "batch_size": 32}
RECENCY = TowerConfig(residual_dim=8, history_items=4, **PLAIN)
SEQUENCE = SequenceConfig(residual_dim=8, history_items=6, hidden_dropout=0.0, layers=1, **PLAIN)


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    """A sentence-transformer of a few thousand random weights."""
    read = Transformer(str(write_tiny_bert(tmp_path)))
    return SentenceTransformer(modules=[read, Pooling(32)], device="cpu")


def settings(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(
        **{"method": FinetuneMethod.FULL, "chunk_texts": 5, "lora_rank": 4, "precision": "float32"} | changes
    )


def silent(_: dict) -> None:
    pass


def tuner(encoder: Any, config: FinetuneConfig, *, log=silent) -> EncoderTuner:
    return EncoderTuner(encoder, TEXTS, config=config, training=TRAINING, reading=READING, log=log)


def trained(vectors: np.ndarray, config: TowerConfig = RECENCY) -> TwoTowers:
    torch.manual_seed(0)
    model = TwoTowers(torch.from_numpy(centred(vectors)), config)
    train_towers(model, TRAIN, nobody(), config=TRAINING, name="toy", log=silent)
    return model


def full_loss(model: TwoTowers, table: torch.Tensor) -> torch.Tensor:
    """Of every position in one batch, over all items, as a function of the centred table."""
    frozen, model.text = model.text, table
    try:
        examples = model.user.examples(TRAIN)
        (everything,) = examples.batches(10_000, np.random.default_rng(0))
        given, targets = examples.batch(everything)
        logits = model.user_vectors_at(given) @ model.item_vectors_at(torch.arange(N)).T
        return F.cross_entropy(logits[targets >= 0], targets[targets >= 0])
    finally:
        model.text = frozen


def plain_gradient(encoder: Any, model: TwoTowers) -> tuple[torch.Tensor, torch.Tensor]:
    """Of encoder and towers, with everything in one graph."""
    encoder.eval()
    model.zero_grad(set_to_none=True)
    table = F.normalize(encoder(encoder.preprocess(TEXTS))["sentence_embedding"], dim=1)
    full_loss(model, F.normalize(table - table.mean(dim=0), dim=1)).backward()
    found = gradient_of(encoder.parameters()), gradient_of(model.parameters())
    encoder.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    return found


def gradient_of(weights) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])


@pytest.fixture
def steps(monkeypatch) -> list[list[torch.Tensor]]:
    """The gradients that AdamW was called with, by step and group of weights; no step is taken."""
    caught: list[list[torch.Tensor]] = []

    def catch(self: torch.optim.AdamW, closure: Any = None) -> None:
        caught.append([gradient_of(group["params"]) for group in self.param_groups])

    monkeypatch.setattr(torch.optim.AdamW, "step", catch)
    return caught


@pytest.mark.parametrize("config", [RECENCY, SEQUENCE])
def test_an_exact_step_is_one_of_the_plain_loss(encoder, config, steps):
    model = trained(encode_texts(encoder, TEXTS, READING), config)
    steps.clear()
    tuning = tuner(encoder, settings(schedule=Schedule.EXACT, exact_steps=2))
    for_encoder, for_towers = plain_gradient(encoder, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuning.round(model, TRAIN, encode_texts(encoder, TEXTS, READING), number=1)
    assert len(steps) == 2
    assert for_encoder.abs().max() > 1e-3
    for found_encoder, found_towers in steps:  # all positions are in each, since there are few
        np.testing.assert_allclose(found_encoder, for_encoder, atol=1e-5)
        np.testing.assert_allclose(found_towers, for_towers, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("config", [RECENCY, SEQUENCE])
def test_a_stale_pass_adds_up_to_the_plain_gradient(encoder, config, steps):
    """As long as no step is taken in between, and but for one factor."""
    vectors = encode_texts(encoder, TEXTS, READING)
    model = trained(vectors, config)
    steps.clear()
    tuning = tuner(encoder, settings(schedule=Schedule.STALE))
    expected, _ = plain_gradient(encoder, model)
    tuning.round(model, TRAIN, vectors, number=1)
    assert len(steps) == 3  # chunks of 5, 5 and 2 texts
    found = sum(groups[0] for groups in steps)
    assert float(F.cosine_similarity(found, expected, dim=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", [FinetuneMethod.LORA, FinetuneMethod.FULL])
@pytest.mark.parametrize("schedule", [Schedule.EXACT, Schedule.STALE])
def test_tuning_lowers_the_loss_of_towers_that_stand_still(encoder, method, schedule):
    config = settings(method=method, schedule=schedule, learning_rate=2e-3, exact_steps=3, tower_learning_rate=1e-9)
    vectors = encode_texts(encoder, TEXTS, READING)
    model = trained(vectors)
    losses = [full_loss(model, torch.from_numpy(centred(vectors))).item()]
    tuning = tuner(encoder, config)
    for number in range(1, 7):
        vectors = tuning.round(model, TRAIN, vectors, number=number)
        model.text = torch.from_numpy(centred(vectors))
        losses.append(full_loss(model, model.text).item())
    assert losses[-1] < losses[0] - 0.01
    plain = tuning.finished(tuning.weights())
    np.testing.assert_allclose(encode_texts(plain, TEXTS, READING), vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("figures", "selects", "best"),
    [([0.1, 0.3, 0.2], True, 1), ([0.3, 0.1, 0.2], True, 0), ([0.3, 0.3, 0.3], True, 0), ([0.3, 0.0, 0.0], False, 2)],
)
def test_the_best_round_is_kept_with_its_vectors_and_its_encoder(encoder, figures, selects, best):
    vectors = encode_texts(encoder, TEXTS, READING)
    seen: list[tuple[TwoTowers, np.ndarray]] = []

    def fit_towers(text_vectors: np.ndarray, number: int) -> tuple[TwoTowers, float]:
        seen.append((trained(text_vectors), text_vectors))
        return seen[-1][0], figures[len(seen) - 1]

    tuning = tuner(encoder, settings(learning_rate=5e-3, schedule=Schedule.STALE))
    found = tune_encoder(tuning, TRAIN, vectors, fit_towers=fit_towers, rounds=2, selects=selects)
    assert (found.number, found.ndcg10) == (best, figures)
    assert found.towers is seen[best][0]
    np.testing.assert_array_equal(found.text_vectors, seen[best][1])
    assert np.abs(seen[1][1] - seen[2][1]).max() > 1e-3
    if best == 0:
        assert found.encoder is None
    else:
        np.testing.assert_allclose(encode_texts(found.encoder, TEXTS, READING), found.text_vectors, atol=1e-5)


def test_the_towers_kept_are_those_of_the_best_figure(encoder):
    def fit_towers(text_vectors: np.ndarray, number: int) -> tuple[TwoTowers, float]:
        torch.manual_seed(0)
        model = TwoTowers(torch.from_numpy(centred(text_vectors)), RECENCY)
        record = train_towers(model, TRAIN, VALIDATION, config=TRAINING, name="toy", log=silent)
        return model, record.best_ndcg10

    tuning = tuner(encoder, settings(learning_rate=5e-3))
    vectors = encode_texts(encoder, TEXTS, READING)
    found = tune_encoder(tuning, TRAIN, vectors, fit_towers=fit_towers, rounds=2, selects=True)
    assert len(found.ndcg10) == 3
    assert len(set(found.ndcg10)) > 1
    assert found.ndcg10[found.number] == max(found.ndcg10)
    assert validation_ndcg10(found.towers, VALIDATION) == pytest.approx(max(found.ndcg10))


def test_rounds_are_repeated_by_their_seed(encoder, tmp_path):
    vectors = encode_texts(encoder, TEXTS, READING)
    model, found = trained(vectors), []
    for seed in (0, 0, 1):
        fresh = SentenceTransformer(modules=[Transformer(str(write_tiny_bert(tmp_path))), Pooling(32)], device="cpu")
        config = settings(method=FinetuneMethod.LORA, schedule=Schedule.EXACT, dropout=True, seed=seed, exact_steps=2)
        found.append(tuner(fresh, config).round(model, TRAIN, vectors, number=1))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-6


@pytest.mark.parametrize("schedule", [Schedule.EXACT, Schedule.STALE])
def test_a_catalog_too_large_for_the_full_softmax_is_tuned_by_a_sample(encoder, schedule, monkeypatch):
    monkeypatch.setattr(objective, "FULL_SOFTMAX_ITEMS", N - 1)
    vectors = encode_texts(encoder, TEXTS, READING)
    torch.manual_seed(0)
    model = TwoTowers(torch.from_numpy(centred(vectors)), RECENCY, sparse=True)
    assert model.sparse_weights()
    tuning = tuner(encoder, settings(schedule=schedule, learning_rate=1e-3))
    found = tuning.round(model, TRAIN, vectors, number=1)
    assert np.abs(found - vectors).max() > 1e-3


@pytest.mark.parametrize("schedule", [Schedule.EXACT, Schedule.STALE])
def test_divergence_is_told_with_the_setting_to_lower(encoder, schedule):
    vectors = encode_texts(encoder, TEXTS, READING)
    tuning = tuner(encoder, settings(schedule=schedule, learning_rate=1e30))
    with pytest.raises(NotFinite, match=r"round 2.*step.*lower retriever.finetune.learning_rate \(now 1e\+30\)"):
        tuning.round(trained(vectors), TRAIN, vectors, number=2)


def test_an_item_that_nobody_took_and_that_no_history_holds_is_not_read_in_a_stale_pass(encoder, steps):
    """Its vector moves the mean, and that alone is no reason: the gradient through the mean is spread evenly."""
    vectors = encode_texts(encoder, TEXTS, READING)
    torch.manual_seed(0)
    model = TwoTowers(torch.from_numpy(centred(vectors)), RECENCY)
    tuning = EncoderTuner(
        encoder,
        TEXTS,
        config=settings(schedule=Schedule.STALE, chunk_texts=1),
        training=TRAINING,
        reading=READING,
        log=silent,
        table=lambda table: table * 1,  # without a mean nothing reaches the other items
    )
    tuning.round(model, Histories.of([[1, 2, 3]]), vectors, number=1)
    assert len(steps) == 3


def test_auto_is_exact_where_that_is_affordable(monkeypatch):
    config = FinetuneConfig()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    limit = finetune.EXACT_ITEMS
    assert [config.schedule_for(n) for n in (limit, limit + 1)] == [Schedule.EXACT, Schedule.STALE]
    assert FinetuneConfig(schedule=Schedule.EXACT).schedule_for(10 * limit) is Schedule.EXACT
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config.schedule_for(10 * limit) is Schedule.EXACT
    assert FinetuneConfig(schedule=Schedule.STALE).schedule_for(1) is Schedule.STALE


def test_steps_are_told(encoder):
    vectors, told = encode_texts(encoder, TEXTS, READING), []
    tuner(encoder, settings(schedule=Schedule.STALE), log=told.append).round(trained(vectors), TRAIN, vectors, number=1)
    assert [(entry["step"], entry["of"]) for entry in told] == [(1, 3), (2, 3), (3, 3)]


def test_a_merged_encoder_is_a_plain_sentence_transformer_in_another_place(encoder, tmp_path):
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.LORA, lora_rank=4))
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    merge_adapter(encoder)
    encoder.save_pretrained(str(tmp_path / "tuned"))
    assert not list((tmp_path / "tuned").rglob("adapter_*"))
    loaded = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    np.testing.assert_allclose(encode_texts(loaded, TEXTS, READING), encode_texts(encoder, TEXTS, READING), atol=1e-5)


def test_lora_leaves_the_base_as_it_was(encoder):
    before = encode_texts(encoder, TEXTS, READING)
    add_adapter(encoder, FinetuneConfig(method=FinetuneMethod.LORA, lora_rank=4))
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, READING), before, atol=1e-6)
    trainable = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize("schedule", [Schedule.EXACT, Schedule.STALE])
def test_a_round_stops_at_the_end_of_its_minutes_and_its_rate_falls_in_time(encoder, schedule, monkeypatch):
    vectors = encode_texts(encoder, TEXTS, READING)
    model, rates, clock, told = trained(vectors), [], [0.0], []
    plain = torch.optim.AdamW.step

    def ticking(self: torch.optim.AdamW, closure: Any = None) -> None:
        rates.append(self.param_groups[0]["lr"])
        clock[0] += 60.0
        plain(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", ticking)
    monkeypatch.setattr(finetune.time, "monotonic", lambda: clock[0])
    config = settings(schedule=schedule, chunk_texts=1, exact_steps=12, learning_rate=1e-3)
    tuning = EncoderTuner(
        encoder, TEXTS, config=config, training=TRAINING, reading=READING, log=silent, say=told.append
    )
    found = tuning.round(model, TRAIN, vectors, number=1, budget_minutes=3.5)
    assert len(rates) == 4  # of 12
    assert rates == pytest.approx([1e-3, *(1e-3 * (1 - minutes / 3.5) for minutes in (1, 2, 3))])
    assert np.abs(found - vectors).max() > 1e-6
    assert "round 1: step 1 of 12 at most: about" in told[0]


@pytest.mark.parametrize("in_batch", [False, True])
def test_the_loss_of_tuning_shares_targets_as_that_of_training(encoder, in_batch):
    vectors = encode_texts(encoder, TEXTS, READING)
    training = TRAINING.model_copy(update={"softmax": objective.Softmax.SAMPLED, "in_batch_negatives": in_batch})
    losses = finetune._Losses(trained(vectors), TRAIN, training=training, positions=50, rng=np.random.default_rng(0))
    alone, among = (losses.objective.sampler.expected(np.arange(N), batch=size) for size in (1, 30))
    assert (among > alone).all() == in_batch
