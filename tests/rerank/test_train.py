import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.schema import Histories
from rerank import train
from rerank.adapters import AdapterConfig
from rerank.encoder import EncoderReranker
from rerank.lists import TrainingLists
from rerank.objective import Objective
from rerank.sample import LEAST_LISTS, Sample
from rerank.schedule import hard_share, make_optimizer, set_rates
from rerank.train import StopReason, train_reranker
from rerank.train_config import RerankTrainConfig
from store.hardware import Precision
from tests.rerank.tiny_bert import CONFIG, WORDS, untrained

PARTNERS = 8
FAST = RerankTrainConfig(
    epochs=1,
    budget_minutes=600,  # where the clock binds, the learning rate follows it and no result is like another
    users_per_batch=4,
    list_size=4,
    validate_every_steps=5,
    precision=Precision.FLOAT32,
    hard_share_end=0.5,
)
PLANTED = {
    "epochs": 2,
    "users_per_batch": 16,
    "list_size": 8,
    "learning_rate": 5e-3,
    "head_learning_rate": 1e-2,
    "validate_every_steps": 60,
    "seed": 1,
}
"""Enough to find a planted rule."""


def partner_rule(examples: int, *, seed: int) -> TrainingLists:
    """Planted: the first word of the last item decides the first word of the next one.

    Item texts are two words, of which the second is noise. Word i is followed by word PARTNERS + i, which shares
    no token with it, so a cosine cannot know. Every history and every target is an item of its own, taken once: no
    count over item ids, no popularity and no retriever of ids can know either.
    """
    rng = np.random.default_rng(seed)
    firsts = rng.integers(PARTNERS, size=examples)
    noise = rng.choice(WORDS[2 * PARTNERS :], size=(examples, 3))
    older = [f"{WORDS[rng.integers(PARTNERS)]} {noise[row, 0]}" for row in range(examples)]
    last = [f"{WORDS[first]} {noise[row, 1]}" for row, first in enumerate(firsts)]
    targets = [f"{WORDS[PARTNERS + first]} {noise[row, 2]}" for row, first in enumerate(firsts)]
    histories = Histories.of([[row, examples + row] for row in range(examples)])
    weights = np.repeat([0.0, 0.0, 1.0], examples)  # negatives look like targets
    return TrainingLists(
        [*older, *last, *targets],
        histories,
        np.arange(2 * examples, 3 * examples),
        np.empty((examples, 0), dtype=np.int64),
        weights,
    )


def quiet(record: Mapping[str, Any]) -> None:
    pass


def test_a_planted_rule_that_only_the_texts_show_is_recovered(tiny_bert: Path) -> None:
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=8, alpha=16), "head_width": 64})
    reranker = untrained(tiny_bert, config=config)
    record = train_reranker(
        reranker,
        partner_rule(1000, seed=0),
        validation=partner_rule(100, seed=9),
        config=FAST.model_copy(update=PLANTED),
        log=quiet,
    )
    assert record.before is not None
    assert record.best is not None
    # A perfect reader still has to guess among the target and those of 7 negatives that show the right word too.
    same_word = [math.comb(7, n) * (1 / PARTNERS) ** n * (1 - 1 / PARTNERS) ** (7 - n) for n in range(8)]
    ideal = sum(chance * math.log(1 + n) for n, chance in enumerate(same_word))
    assert record.before.loss > 0.9 * math.log(8)
    assert record.best.loss < ideal + 0.2
    assert record.best.ndcg_10 > record.before.ndcg_10 + 0.25


def trained(folder: Path, config: RerankTrainConfig = FAST, **parts: Any) -> tuple[EncoderReranker, Any, list[Any]]:
    reranker, records = untrained(folder), []
    options = {"examples": partner_rule(40, seed=0), "validation": partner_rule(12, seed=9), **parts}
    record = train_reranker(
        reranker, options["examples"], validation=options["validation"], config=config, log=records.append
    )
    return reranker, record, records


def weights(reranker: EncoderReranker) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in reranker.trainable().items()}


def test_one_seed_gives_one_result_and_another_seed_another(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    first, record, _ = trained(tiny_bert)
    torch.manual_seed(1)  # the global generator has no say
    second, again, _ = trained(tiny_bert)
    assert record.losses == again.losses
    assert all(torch.equal(value, second.trainable()[name]) for name, value in first.trainable().items())
    assert trained(tiny_bert, FAST.model_copy(update={"seed": 5}))[1].losses != record.losses


def test_log_holds_every_step_every_validation_and_the_end(tiny_bert: Path) -> None:
    _, record, log = trained(tiny_bert)
    assert record.stop is StopReason.FINISHED
    assert record.steps == len(record.losses) == 10
    assert record.lists == 40
    assert [entry["step"] for entry in log if entry["event"] == "step"] == list(range(1, 11))
    for entry in log:
        if entry["event"] == "step":  # 4 lists of 4 items; their tokens take the same time
            seconds = 16 / entry["items_per_second"]
            assert 0 < seconds < 60
            assert 16 * 2 < entry["tokens_per_second"] * seconds < 16 * 20
    assert [entry["step"] for entry in log if entry["event"] == "validation"] == [0, 5, 10]
    assert log[-1] == {"event": "end", "stop": "finished", "steps": 10, "best_step": record.best_step}


def test_steps_after_the_last_regular_validation_are_validated_too(tiny_bert: Path) -> None:
    _, _, log = trained(tiny_bert, FAST.model_copy(update={"validate_every_steps": 7}))
    assert [entry["step"] for entry in log if entry["event"] == "validation"] == [0, 7, 10]


def test_training_that_only_harms_leaves_the_weights_as_they_were(tiny_bert: Path) -> None:
    before = weights(untrained(tiny_bert))
    wild = FAST.model_copy(update={"learning_rate": 50.0, "head_learning_rate": 50.0, "validate_every_steps": 2})
    reranker, record, _ = trained(tiny_bert, wild.model_copy(update={"patience": 3}))
    assert record.stop is StopReason.PATIENCE
    assert record.steps == 6
    assert record.best_step == 0
    assert record.best == record.before
    assert all(torch.equal(value, before[name]) for name, value in reranker.trainable().items())


def test_a_loss_that_is_not_finite_stops_and_the_last_good_weights_stay(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def poisoned(*given: Any, **settings: Any) -> torch.Tensor:
        calls.append(1)
        return true_loss(*given, **settings) * (math.nan if len(calls) == 8 else 1.0)

    true_loss = train.loss_of
    monkeypatch.setattr(train, "loss_of", poisoned)
    reranker, record, log = trained(tiny_bert, validation=None)
    assert record.stop is StopReason.NOT_FINITE
    assert record.steps == 7
    assert record.best_step == 5
    assert all(torch.isfinite(value).all() for value in reranker.trainable().values())
    (told,) = [entry for entry in log if entry["event"] == "not finite"]
    assert (told["step"], told["loss"], len(told["lists"])) == (8, "nan", FAST.users_per_batch)


def test_budget_stops_and_brings_the_rate_down(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def passing() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(train.time, "monotonic", passing)
    _, record, log = trained(tiny_bert, FAST.model_copy(update={"epochs": 50, "budget_minutes": 1}))
    assert record.stop is StopReason.BUDGET
    assert 5 < record.steps < 60
    rates = [entry["learning_rate"] for entry in log if entry["event"] == "step"]
    assert rates[-1] < 0.05 * max(rates)
    assert log[-2]["event"] == "validation"  # the last steps count too,
    assert log[-2]["elapsed_s"] <= 60 + 5  # and time was left to weigh them, give or take one step


def test_without_validation_the_last_weights_are_kept(tiny_bert: Path) -> None:
    reranker, record, _ = trained(tiny_bert, validation=None)
    assert record.before is None
    assert record.best is None
    assert record.best_step == record.steps == 10
    assert any(not torch.equal(value, weights(untrained(tiny_bert))[name]) for name, value in weights(reranker).items())


def test_validation_lists_are_at_most_so_many(tiny_bert: Path) -> None:
    few = FAST.model_copy(update={"validation_lists": 3})
    assert trained(tiny_bert, few)[1].before != trained(tiny_bert)[1].before


def test_validation_takes_a_small_part_of_the_minutes(tiny_bert: Path) -> None:
    # A budget that no machine keeps: 8 % of it are less than one pass over the lists.
    hurried = FAST.model_copy(update={"budget_minutes": 1e-4})
    found = {}
    for name, config in {"hurried": hurried, "at leisure": FAST}.items():
        log: list[Mapping[str, Any]] = []
        train_reranker(
            untrained(tiny_bert),
            partner_rule(40, seed=0),
            validation=partner_rule(60, seed=1),
            config=config,
            log=log.append,
        )
        found[name] = {record["lists"] for record in log if record["event"] == "validation"}
    assert found == {"hurried": {LEAST_LISTS}, "at leisure": {60}}


def test_a_sample_in_little_time_is_spread_over_the_whole(tiny_bert: Path) -> None:
    whole = Sample.of(partner_rule(200, seed=1), 200, prompter=untrained(tiny_bert).prompter, config=FAST)
    assert whole is not None
    half = whole.within(whole.tokens / 2)
    place_of = {id(one): place for place, one in enumerate(whole.lists)}
    places = [place_of[id(one)] for one in half.lists]
    assert len(half.lists) == 100
    assert half.tokens == pytest.approx(whole.tokens / 2, rel=0.05)
    assert set(np.diff(places)) <= {2, 3}
    assert whole.within(whole.tokens) is whole
    assert len(whole.within(1).lists) == LEAST_LISTS


def test_a_trained_reranker_can_be_saved_loaded_and_trained_on(tiny_bert: Path, tmp_path: Path) -> None:
    reranker, _, _ = trained(tiny_bert, validation=None)
    reranker.save(tmp_path)
    again = EncoderReranker.load(tmp_path, model_dir=tiny_bert, model_fingerprint=reranker.base.fingerprint)
    first, second = (
        train_reranker(one, partner_rule(20, seed=3), validation=None, config=FAST, log=quiet)
        for one in (reranker, again)
    )
    assert first.losses == pytest.approx(second.losses, abs=1e-5)
    assert all(torch.allclose(value, again.trainable()[name], atol=1e-5) for name, value in weights(reranker).items())


def test_dropout_of_the_adapter_is_off_outside_of_steps(tiny_bert: Path) -> None:
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=4, dropout=0.5)})
    reranker = untrained(tiny_bert, config=config)
    train_reranker(reranker, partner_rule(20, seed=0), validation=None, config=FAST, log=quiet)
    assert not reranker.backbone.training
    assert not reranker.head.training


def test_bfloat16_training_follows_float32(tiny_bert: Path) -> None:
    exact = trained(tiny_bert)[1].losses
    close = trained(tiny_bert, FAST.model_copy(update={"precision": Precision.BFLOAT16}))[1].losses
    assert close == pytest.approx(exact, abs=0.1)
    assert close != exact


def test_hard_share_rises_over_the_curriculum_and_stays() -> None:
    config = RerankTrainConfig(hard_share_start=0.2, hard_share_end=0.8, curriculum_share=0.5)
    assert [hard_share(part, config) for part in (0, 0.25, 0.5, 1)] == pytest.approx([0.2, 0.5, 0.8, 0.8])
    assert hard_share(0, config.model_copy(update={"curriculum_share": 0.0})) == 0.8


def test_rates_rise_over_the_warm_up_and_fall_along_half_a_cosine() -> None:
    config = RerankTrainConfig(learning_rate=0.1, head_learning_rate=0.4, warmup_share=0.2)
    parameters = {"encoder.a": torch.nn.Parameter(torch.zeros(2, 2)), "head.b": torch.nn.Parameter(torch.zeros(2))}
    optimizer = make_optimizer(parameters, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay, 0.0]
    for progress, factor in ((0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)):
        assert set_rates(optimizer, progress, config=config) == pytest.approx(0.1 * factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.4 * factor])
    assert set_rates(optimizer, 0.0, config=config) > 0


def test_no_examples_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        trained(tiny_bert, examples=partner_rule(0, seed=0))


def gradients(folder: Path, **settings: Any) -> list[float]:
    """Of one step of eight lists."""
    config = FAST.model_copy(update={"users_per_batch": 8, "clip_norm": 1e9, **settings})
    return [entry["gradient_norm"] for entry in trained(folder, config, validation=None)[2] if entry["event"] == "step"]


@pytest.mark.parametrize("settings", [{"users_per_pass": 3}, {"checkpointing": True}, {"users_per_pass": 1}])
def test_saving_memory_changes_no_gradient(tiny_bert: Path, settings: dict[str, Any]) -> None:
    whole = gradients(tiny_bert, users_per_pass=8)
    assert gradients(tiny_bert, **{"users_per_pass": 8, **settings}) == pytest.approx(whole, rel=1e-3)


def test_checkpointing_keeps_less_for_the_way_back(tiny_bert: Path) -> None:
    reranker = untrained(tiny_bert)
    prompts = [reranker.prompter.prompt([], reranker.prompter.tokenize([" ".join(WORDS[:6])] * 8))] * 4

    def kept(*, checkpointing: bool) -> int:
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda value: sizes.append(value.numel()) or value, lambda v: v),
            reranker.training(checkpointing=checkpointing),
        ):
            reranker.forward(prompts)
        return sum(sizes)

    assert kept(checkpointing=True) < 0.6 * kept(checkpointing=False)


def test_pointwise_scores_become_log_odds_of_being_taken(tiny_bert: Path) -> None:
    settings = {"objective": Objective.POINTWISE, "epochs": 6, "learning_rate": 5e-3, "head_learning_rate": 1e-2}
    # Without validation, which would choose the weights by the order of lists.
    reranker, record, _ = trained(
        tiny_bert, FAST.model_copy(update=settings), examples=partner_rule(200, seed=0), validation=None
    )
    ids = reranker.prompter.tokenize([" ".join(pair) for pair in zip(WORDS[:8], WORDS[8:16], strict=True)])
    prompts = [reranker.prompter.prompt(ids[:1], ids)]
    before = untrained(tiny_bert).score_prompts(prompts).scores[0].mean()
    after = reranker.score_prompts(prompts).scores[0].mean()
    assert after < min(before, 0.5)  # one in four is taken: log-odds of -1.1
    assert record.losses[-1] < 0.8 * record.losses[0]


def with_scores(lists: TrainingLists, scores: str) -> TrainingLists:
    """The same examples among eight candidates, of which the scores know the target or not."""
    rng = np.random.default_rng(4)
    count = len(lists)
    others = rng.integers(2 * count, 3 * count, size=(count, 7))
    others = np.where(others == lists.targets[:, None], (others - 2 * count + 1) % count + 2 * count, others)
    rows = np.concatenate([lists.targets[:, None], others], axis=1)
    values = np.zeros(rows.shape, dtype=np.float32)
    values[:, 0] = 8.0
    return dataclasses.replace(lists, candidates=rows, **{scores: values})


def test_what_the_prior_knows_already_is_not_learnt_again(tiny_bert: Path) -> None:
    settings = FAST.model_copy(update={"epochs": 3})
    known, unknown = (
        trained(tiny_bert, settings, examples=lists, validation=None)[1].losses
        for lists in (with_scores(partner_rule(80, seed=0), "prior"), partner_rule(80, seed=0))
    )
    assert max(known) < 0.1 * min(unknown)


def test_scores_that_would_disturb_the_prior_are_damped_in_the_head(tiny_bert: Path) -> None:
    config = FAST.model_copy(update={"learning_rate": 1e-9, "head_learning_rate": 1e-9, "weight_decay": 0})
    reranker, _, log = trained(tiny_bert, config, examples=with_scores(partner_rule(40, seed=0), "prior"))
    (scaled,) = [entry for entry in log if entry["event"] == "beside a prior"]
    assert scaled["in_the_head"]
    prompts = [reranker.prompter.prompt([], reranker.prompter.tokenize(list(WORDS[:8])))]
    before, after = (one.score_prompts(prompts).scores[0] for one in (untrained(tiny_bert), reranker))
    assert after == pytest.approx(scaled["scale"] * before, rel=1e-3)


def test_a_teachers_order_is_learnt_without_the_item_taken(tiny_bert: Path) -> None:
    lists = with_scores(partner_rule(800, seed=0), "teacher")
    blind = dataclasses.replace(lists, targets=np.zeros(len(lists), dtype=np.int64))  # row 0 is no candidate
    assert not len(blind.found)
    shape = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=8, alpha=16), "head_width": 64})
    record = train_reranker(
        untrained(tiny_bert, config=shape),
        blind,
        validation=with_scores(partner_rule(100, seed=9), "teacher"),
        config=FAST.model_copy(update=PLANTED),
        log=quiet,
    )
    assert record.before is not None
    assert record.best is not None
    assert record.best.ndcg_10 > record.before.ndcg_10 + 0.1
