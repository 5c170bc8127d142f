import numpy as np
import pytest

from eval.significance import Verdict, bootstrap_mean, paired_bootstrap


def test_a_planted_gain_is_found_and_its_mirror_image_harms():
    rng = np.random.default_rng(0)
    theirs = rng.random(2000)
    ours = theirs + rng.normal(0.02, 0.1, 2000)
    gain, loss = paired_bootstrap(ours, theirs), paired_bootstrap(theirs, ours)
    assert gain.verdict == Verdict.HELPS
    assert loss.verdict == Verdict.HARMS
    assert gain.difference == pytest.approx((ours - theirs).mean())
    assert gain.relative == pytest.approx((ours - theirs).mean() / theirs.mean())
    assert loss.difference == -gain.difference
    assert (loss.better, loss.worse) == (gain.worse, gain.better)


def test_the_interval_is_that_of_the_normal_where_the_normal_holds():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(3000), rng.random(3000)
    test = paired_bootstrap(ours, theirs, draws=20_000)
    spread = (ours - theirs).std() / 3000**0.5
    assert test.low == pytest.approx(test.difference - 1.96 * spread, abs=0.06 * spread)
    assert test.high == pytest.approx(test.difference + 1.96 * spread, abs=0.06 * spread)


def test_p_is_the_two_sided_tail_of_the_normal():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, 4000)
    ours = (noise - noise.mean()) / noise.std() + 2 / 4000**0.5  # two standard errors above 0
    test = paired_bootstrap(ours, np.zeros(4000), draws=20_000)
    assert test.p_value == pytest.approx(0.0455, abs=0.006)
    assert test.relative is None  # theirs is 0 everywhere: there is no percentage of it


def test_counting_distinct_rows_and_drawing_users_give_the_same_interval():
    """Few distinct values take the multinomial path; a hair of noise forces the other one."""
    rng = np.random.default_rng(3)
    ours = np.where(rng.random(4000) < 0.3, 1 / np.log2(rng.integers(2, 12, 4000)), 0)
    theirs = np.where(rng.random(4000) < 0.28, 1 / np.log2(rng.integers(2, 12, 4000)), 0)
    few = paired_bootstrap(ours, theirs)
    many = paired_bootstrap(ours + rng.normal(0, 1e-9, 4000), theirs)
    width = few.high - few.low
    for name in ("difference", "low", "high"):
        assert getattr(few, name) == pytest.approx(getattr(many, name), abs=0.04 * width)
    assert few.relative_low == pytest.approx(many.relative_low, abs=0.04 * (few.relative_high - few.relative_low))
    assert few.p_value == pytest.approx(many.p_value, abs=0.03)


def test_equal_systems_are_no_evidence():
    values = np.random.default_rng(4).random(100)
    test = paired_bootstrap(values, values)
    assert (test.difference, test.low, test.high, test.p_value) == (0, 0, 0, 1)
    assert (test.better, test.worse) == (0, 0)
    assert test.verdict == Verdict.NO_EVIDENCE


def test_a_handful_of_users_who_differ_is_no_evidence_however_much_they_gain():
    """Five that gain and none that loses: an interval above 0, yet p = 2 / 2⁵ = .0625 by the sign test."""
    theirs = np.zeros(1000)
    five, six = theirs.copy(), theirs.copy()
    five[:5], six[:6] = 1, 1
    assert paired_bootstrap(five, theirs).low > 0
    assert paired_bootstrap(five, theirs).verdict == Verdict.NO_EVIDENCE
    assert (paired_bootstrap(five, theirs).differing, paired_bootstrap(five, theirs).needed) == (5, 6)
    assert paired_bootstrap(five, theirs, level=0.99).needed == 8
    assert paired_bootstrap(six, theirs).verdict == Verdict.HELPS
    assert paired_bootstrap(six, theirs, level=0.99).verdict == Verdict.NO_EVIDENCE
    assert paired_bootstrap(np.ones(1), np.zeros(1)).verdict == Verdict.NO_EVIDENCE


def simulated(users: int, shift: float, rng: np.random.Generator):
    """Two rankers of hit-or-miss users with a known expected difference in NDCG@10."""
    gains = np.array([0.0, *(1 / np.log2(np.arange(2, 12)))])
    base = np.array([0.8, *[0.02] * 10])
    moved = base.copy()
    moved[0] -= shift
    moved[1] += shift
    ours, theirs = rng.choice(gains, users, p=moved), rng.choice(gains, users, p=base)
    return ours, theirs, float(gains @ (moved - base))


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_the_interval_holds_the_truth_95_times_in_100(shift):
    rng = np.random.default_rng(6)
    trials, covered, wrong = 400, 0, 0
    for trial in range(trials):
        ours, theirs, truth = simulated(400, shift, rng)
        test = paired_bootstrap(ours, theirs, seed=trial, draws=400)
        covered += test.low <= truth <= test.high
        wrong += test.verdict == Verdict.HARMS or (shift == 0 and test.verdict == Verdict.HELPS)
    # 400 trials: the share has a standard error of 1.1 points; 4 of them on either side.
    assert 0.905 <= covered / trials <= 0.99
    assert wrong / trials <= 0.095


def test_pairing_sees_what_two_separate_intervals_cannot():
    rng = np.random.default_rng(7)
    theirs = rng.random(500)
    ours = theirs + 0.01 + rng.normal(0, 0.02, 500)
    separate, test = bootstrap_mean(theirs), paired_bootstrap(ours, theirs)
    assert separate.high - separate.low > 10 * (test.high - test.low)
    assert test.verdict == Verdict.HELPS


def test_two_runs_of_one_seed_agree_and_another_seed_differs():
    rng = np.random.default_rng(8)
    ours, theirs = rng.random(300), rng.random(300)
    assert paired_bootstrap(ours, theirs, seed=1) == paired_bootstrap(ours, theirs, seed=1)
    assert paired_bootstrap(ours, theirs, seed=1).low != paired_bootstrap(ours, theirs, seed=2).low


def test_the_relative_interval_resamples_both_systems():
    rng = np.random.default_rng(9)
    theirs = rng.exponential(1, 800)
    test = paired_bootstrap(1.1 * theirs, theirs)  # always a tenth more, whoever is drawn
    assert (test.relative_low, test.relative_high) == pytest.approx((0.1, 0.1))
    assert test.high - test.low > 0.005


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (np.zeros(3), np.zeros(2), r"\(3,\) and \(2,\)"),
        (np.zeros(0), np.zeros(0), "no user"),
        (np.array([np.nan]), np.zeros(1), "not finite"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "one value a user"),
    ],
)
def test_what_cannot_be_compared_is_refused(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(ours, theirs)
