"""Towers taught by a planted teacher: the loss written out, what changes and what stays, and when nothing is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.schema import NO_ITEM, Candidates, Histories, Holdout
from retrieval.distil import DistilConfig, Lessons, _loss, distil_towers
from retrieval.validation import catalog_ndcg10
from tests.retrieval.toy import circle, ensemble

N = 20
TRAIN, VALIDATION = circle(N, users=80)
FAST = DistilConfig(epochs=6, batch_size=16, learning_rate=0.02)


def lessons(*, right: bool) -> Lessons:
    """A teacher who knows that item i is followed by i + 1, or one who believes in i − 1; others are all alike."""
    rng = np.random.default_rng(0)
    rows = np.array([rng.permutation(N)[:12] for _ in range(len(TRAIN))])
    last = TRAIN.last(1)[:, 0]
    step = 1 if right else -1
    rows[:, 0] = (last + step) % N
    return Lessons(TRAIN, as_candidates(rows), 6.0 * (rows == ((last + step) % N)[:, None]).astype(np.float32))


def as_candidates(rows: np.ndarray) -> Candidates:
    return Candidates(rows, np.zeros(rows.shape, dtype=np.float32))


def quiet(_: dict) -> None:
    pass


def ndcg10(towers, asked: Holdout) -> float:
    vectors = towers.item_vectors()
    return catalog_ndcg10(lambda part: towers.user_vectors(part) @ vectors.T, asked, n_items=N)


@pytest.mark.parametrize("place", [0, 2], ids=["recency", "sequence"])
def test_the_loss_is_the_cross_entropy_to_the_teacher_written_out(place: int) -> None:
    towers = ensemble(N).members[place].towers
    rows = np.array([[3, 4, 5], [6, 7, NO_ITEM]])
    scores = np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 9.0]], dtype=np.float32)
    histories = Histories.of([[1, 2], [8]])
    given = Lessons(histories, as_candidates(rows), scores)
    users, items = towers.user_vectors(histories), towers.item_vectors()
    towers.eval()
    wanted = 0.0
    for user, width in ((0, 3), (1, 2)):
        logits = items[rows[user, :width]] @ users[user] / 2
        logs = logits - np.log(np.exp(logits).sum())
        taught = np.exp(scores[user, :width] / 2)
        wanted -= 4 * float((taught / taught.sum() * logs).sum()) / 2
    table = torch.from_numpy(items)
    found = _loss(towers, table, given, np.array([0, 1]), temperature=2.0).item()
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_teacher_who_knows_the_rule_makes_towers_find_it_and_item_vectors_stay() -> None:
    before = ensemble(N)
    after, records = distil_towers(before, lessons(right=True), validation=VALIDATION, config=FAST, log=quiet)
    np.testing.assert_array_equal(after.item_vectors(), before.item_vectors())
    for old, new, record in zip(before.members, after.members, records, strict=True):
        assert record.name == old.name
        assert record.before_ndcg10 == pytest.approx(ndcg10(old.towers, VALIDATION))
        assert record.best_ndcg10 == pytest.approx(ndcg10(new.towers, VALIDATION))
        assert record.best_epoch > 0
        assert record.best_ndcg10 > record.before_ndcg10 + 0.2


def test_what_does_not_gain_on_validation_is_not_kept() -> None:
    knowing, _ = distil_towers(ensemble(N), lessons(right=True), validation=VALIDATION, config=FAST, log=quiet)
    wild = FAST.model_copy(update={"learning_rate": 1.0})
    after, records = distil_towers(knowing, lessons(right=False), validation=VALIDATION, config=wild, log=quiet)
    assert [record.best_epoch for record in records] == [0, 0, 0]
    for old, new in zip(knowing.members, after.members, strict=True):
        for name, value in old.towers.state_dict().items():
            assert torch.equal(value, new.towers.state_dict()[name])


def test_one_seed_gives_one_result_and_epochs_chosen_before_are_run_without_validation() -> None:
    nobody = replace(VALIDATION.take(np.zeros(0, dtype=np.int64)))
    towers, given = ensemble(N), lessons(right=True)
    short = FAST.model_copy(update={"epochs": 2})
    first, records = distil_towers(towers, given, validation=VALIDATION, config=short, log=quiet)
    again, _ = distil_towers(towers, given, validation=VALIDATION, config=short, log=quiet)
    chosen = {record.name: record.best_epoch for record in records}
    final, told = distil_towers(towers, given, validation=nobody, config=FAST, log=quiet, epochs=chosen)
    assert {record.name: record.best_epoch for record in told} == chosen
    for one, other, last in zip(first.members, again.members, final.members, strict=True):
        vectors = [member.towers.user_vectors(VALIDATION.histories) for member in (one, other, last)]
        np.testing.assert_array_equal(vectors[0], vectors[1])
        np.testing.assert_array_equal(vectors[0], vectors[2])
