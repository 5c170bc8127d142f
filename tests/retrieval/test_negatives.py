from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM
from retrieval.loss import full_softmax_loss
from retrieval.negatives import Negatives, NegativeSampler

N = 12
COUNTS = np.round(400 / np.arange(1, N + 1) ** 1.5).astype(np.int64)
LOGITS = np.linspace(1.0, -1.0, N)  # popular items have the larger logits, too
TARGET, BATCH = 3, 5
FULL = np.exp(LOGITS).sum()


def sampler(*, size: int = 24, in_batch: bool = False, power: float = 0.75) -> NegativeSampler:
    return NegativeSampler(COUNTS, size=size, power=power, target_counts=COUNTS if in_batch else None)


def signed(drawer: NegativeSampler, found: Negatives, *, sign: int) -> Negatives:
    """The same draws with logQ subtracted (1), left out (0) or added (-1)."""
    log_expected = np.log(drawer.expected(found.rows, batch=BATCH))
    return replace(found, log_expected=found.log_expected + (sign - 1) * log_expected.astype(np.float32))


def estimates(
    *,
    mined: list[int],
    in_batch: bool = False,
    sign: int = 1,
    draws: int = 1000,
    power: float = 0.75,
    logits: np.ndarray = LOGITS,
) -> np.ndarray:
    """What stands in the sum over the catalog for a position whose item is TARGET, one figure a draw.

    The other targets of its batch come from a shuffled list of all positions, as they do in training.
    """
    rng = np.random.default_rng(0)
    drawer = sampler(in_batch=in_batch, size=16, power=power)
    others = np.repeat(np.arange(N), COUNTS)
    others = np.delete(others, np.searchsorted(others, TARGET))
    wanted = np.full((BATCH, len(mined)), NO_ITEM)
    wanted[0] = mined
    sums = []
    for _ in range(draws):
        targets = np.concatenate([[TARGET], rng.choice(others, BATCH - 1, replace=False)])
        found = signed(drawer, drawer.draw(targets, rng, mined=wanted), sign=sign)
        weight = np.exp(-found.log_expected) * ~found.accidental[0]
        sums.append(np.exp(logits[[TARGET, *mined]]).sum() + weight @ np.exp(logits[found.rows]))
    return np.array(sums)


def assert_unbiased(sums: np.ndarray) -> None:
    error = sums.std() / np.sqrt(len(sums))
    assert error < 0.02 * FULL
    assert abs(sums.mean() - FULL) < 4 * error


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("mined", [[], [0], [1, 0, 11]])
def test_the_sum_over_the_catalog_is_estimated_without_bias(in_batch, mined):
    assert_unbiased(estimates(in_batch=in_batch, mined=mined))


def test_mining_an_item_that_scores_above_its_popularity_makes_the_estimate_surer():
    logits = np.where(np.arange(N) == N - 1, 3.0, LOGITS)
    alone, with_mined = (estimates(mined=mined, logits=logits) for mined in ([], [N - 1]))
    assert with_mined.std() < 0.5 * alone.std()
    np.testing.assert_allclose(with_mined.mean(), np.exp(logits).sum(), rtol=0.02)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("sign", [0, -1])
def test_a_wrong_sign_of_log_q_is_far_off(in_batch, sign):
    sums = estimates(in_batch=in_batch, mined=[], sign=sign, draws=300)
    assert abs(sums.mean() - FULL) > max(0.2 * FULL, 10 * sums.std() / np.sqrt(len(sums)))


def test_in_batch_targets_count_with_their_own_probability():
    assert_unbiased(estimates(in_batch=True, mined=[], power=0.0))  # here the two samples are least alike
    drawer = sampler(in_batch=True, size=6)
    share = COUNTS / (COUNTS.sum() - 1)
    own = COUNTS**0.75 / (COUNTS**0.75).sum()
    np.testing.assert_allclose(drawer.expected(np.arange(N), batch=BATCH), 6 * own + (BATCH - 1) * share)


@given(st.integers(0, 10_000), st.booleans(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_columns_parts_and_accidental_hits_by_id(seed, in_batch, mined):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, N, BATCH)
    wanted = rng.integers(NO_ITEM, N, (BATCH, mined))  # some are the target, some stand twice
    found = sampler(in_batch=in_batch, size=4).draw(targets, rng, mined=wanted)
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert found.rows.min() >= 0
    np.testing.assert_array_equal(found.rows[found.target_place], targets)
    for position in range(BATCH):
        places = found.mined_place[position]
        own = found.rows[places[places != NO_ITEM]].tolist()
        assert sorted(own) == sorted(set(wanted[position].tolist()) - {NO_ITEM, targets[position]})
        hit = [row in {*own, targets[position]} for row in found.rows]
        assert found.accidental[position].tolist() == hit
    drawn_of_batch = set(targets.tolist()) if in_batch else set()
    finite = set(found.rows[np.isfinite(found.log_expected)].tolist())
    assert drawn_of_batch <= finite
    assert len(finite - drawn_of_batch) <= 4


@pytest.mark.parametrize("mined", [0, 2])
def test_the_loss_is_the_formula_and_draws_on_every_logit_but_those_left_out(mined):
    rng = np.random.default_rng(0)
    targets, wanted = np.array([3, 3, 11]), np.array([[0, 1], [5, NO_ITEM], [3, NO_ITEM]])[:, :mined]
    found = sampler(size=7).draw(targets, rng, mined=wanted)
    logits = torch.randn(3, len(found.rows), generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = []
    for position, target in enumerate(targets):
        taken = {target, *wanted[position].tolist()} - {NO_ITEM}
        total = 0.0
        for column, row in enumerate(found.rows):
            weight = 1.0 if row in taken else np.exp(-found.log_expected[column])
            total += weight * np.exp(logits[position, column].item())
        losses.append(np.log(total) - logits[position, found.target_place[position]].item())
    loss = found.loss(logits)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all()
    np.testing.assert_allclose(logits.grad.sum(dim=1), 0, atol=1e-6)  # a softmax moves nothing on the whole


def test_a_large_sample_gives_the_full_loss_and_a_wrong_sign_another():
    rng = np.random.default_rng(0)
    targets = np.array([0, 3, 3, 11, 7])
    logits = torch.randn(5, N, generator=torch.Generator().manual_seed(0))
    full = full_softmax_loss(logits, torch.from_numpy(targets)).item()
    for in_batch in (False, True):
        drawer = sampler(size=200_000, in_batch=in_batch)
        found = drawer.draw(targets, rng, mined=np.array([[1, 2]] * 5))
        of_columns = logits[:, torch.from_numpy(found.rows)]
        assert found.loss(of_columns).item() == pytest.approx(full, abs=0.01)
        for sign in (0, -1):
            assert signed(drawer, found, sign=sign).loss(of_columns).item() > full + 5


def test_popular_items_are_drawn_by_the_power_of_their_count():
    counts = np.array([16, 0, 1, 81])
    drawer = NegativeSampler(counts, size=50_000, power=0.5)
    np.testing.assert_allclose(drawer.probability, np.array([4, 0, 1, 9]) / 14)
    found = drawer.draw(np.array([1]), np.random.default_rng(0))
    times = drawer.expected(found.rows, batch=1) * np.exp(-found.log_expected)
    np.testing.assert_allclose(times / 50_000, np.array([4, 0, 1, 9]) / 14, atol=0.01)
    again = drawer.draw(np.array([1]), np.random.default_rng(0))
    np.testing.assert_array_equal(found.log_expected, again.log_expected)
