import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from data.schema import NO_ITEM, Candidates, Histories
from fusion import linear
from fusion.linear import LOG_FLOOR, LinearFusion, Transform, column, targets_among

RAW2 = {"a": Transform.RAW, "b": Transform.RAW}


def lists(**sources) -> Candidates:
    """Candidates 0, 1, 2, … in every list, with the given (B, K) source scores."""
    arrays = {name: np.array(scores, dtype=np.float32) for name, scores in sources.items()}
    shape = next(iter(arrays.values())).shape
    rows = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape).copy()
    return Candidates(rows, np.zeros(shape, dtype=np.float32), arrays)


def planted(weights, *, users=600, depth=8, seed=0) -> tuple[Candidates, Histories]:
    """Targets drawn from the softmax of a weighted sum of independent normal columns a, b, ..."""
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((users, depth, len(weights))).astype(np.float32)
    logits = columns @ np.array(weights)
    target = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    named = {chr(ord("a") + place): columns[:, :, place] for place in range(len(weights))}
    return lists(**named), Histories.of(target[:, None].tolist())


def test_score_is_the_weighted_sum_and_minus_infinity_where_there_is_no_item():
    candidates = lists(a=[[1, 2, 3]], b=[[4, 0, 7]])
    candidates.item_rows[0, 2] = NO_ITEM
    fusion = LinearFusion({"a": Transform.RAW, "b": Transform.LOG}, {"a": 0.5, "b": 2.0}, {"a": 1.0, "b": 8.0})
    expected = [0.5 * 1 + 2 * np.log(4 / 8 + LOG_FLOOR), 0.5 * 2 + 2 * np.log(LOG_FLOOR), -np.inf]
    np.testing.assert_allclose(fusion.score(candidates)[0], expected, rtol=1e-6)
    assert fusion.score(candidates).dtype == np.float32


def test_a_source_of_weight_zero_need_not_be_there():
    fusion = LinearFusion(RAW2, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0})
    np.testing.assert_array_equal(fusion.score(lists(a=[[3, 1]])), [[3, 1]])


def test_a_negative_count_is_read_as_none_by_the_logarithm():
    found = column(lists(a=[[-5, 0]]), "a", Transform.LOG, typical=2.0)
    np.testing.assert_allclose(found, np.log([[LOG_FLOOR, LOG_FLOOR]]), rtol=1e-6)


def test_a_rise_of_the_logarithm_is_told_from_what_it_makes_of_nothing():
    """As LOG but for a constant, so that a source that is silent about an item does not move it."""
    candidates = lists(a=[[0, -2, 3, 40]])
    candidates.item_rows[0, 3] = NO_ITEM
    plain, rise = (column(candidates, "a", how, typical=2.0)[0] for how in (Transform.LOG, Transform.LOG_RISE))
    np.testing.assert_allclose(rise[:3], plain[:3] - np.log(LOG_FLOOR), atol=1e-5)
    assert rise[0] == rise[1] == rise[3] == 0


@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((7, 5, 3))
    present = rng.random((7, 5)) < 0.7
    present[:, :2] = True
    relevant = np.zeros((7, 5), dtype=bool)
    relevant[:, 0] = True
    relevant[:3, 1] = True  # users with two targets
    seen = []
    real = linear.minimize
    monkeypatch.setattr(linear, "minimize", lambda loss, *args, **rest: seen.append(loss) or real(loss, *args, **rest))
    pull, centre = np.array([0.03, 0.3, 0.0]), np.array([0.0, 2.0, 1.0])
    linear._fit_listwise(columns, present, relevant, free=np.zeros(3, dtype=bool), pull=pull, centre=centre)
    at = rng.random(3)
    loss, gradient = seen[0](at)
    numeric = approx_fprime(at, lambda weights: seen[0](weights)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)
    by_hand = []
    for user in range(7):
        mass = np.exp(columns[user] @ at)
        by_hand.append(-np.log(mass[relevant[user]].sum() / mass[present[user]].sum()))
    assert loss == pytest.approx(np.mean(by_hand) + pull @ (at - centre) ** 2)


def test_of_many_targets_any_in_the_first_place_will_do():
    """Source a puts one of three targets first and two last; b puts all three in the middle, which is likelier."""
    a, b = [9.0, 5, 5, 5, 5, 1, 1], [6.0, 9, 3, 3, 3, 6, 6]
    candidates, targets = lists(a=[a] * 20, b=[b] * 20), Histories.of([[0, 5, 6]] * 20)
    found = LinearFusion.fit(candidates, targets, RAW2)
    assert found.score(candidates)[0].argmax() == 0


@given(st.lists(st.floats(0, 2), min_size=1, max_size=3), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_planted_weights_are_recovered(weights, seed):
    candidates, targets = planted(weights, users=3000, seed=seed)
    found = LinearFusion.fit(candidates, targets, dict.fromkeys(candidates.sources, Transform.RAW), l2=1e-5)
    np.testing.assert_allclose(list(found.weights.values()), weights, atol=0.2)


def test_a_source_that_misleads_gets_no_weight_rather_than_a_negative_one():
    candidates, targets = planted([1.0, -1.5])
    found = LinearFusion.fit(candidates, targets, RAW2)
    assert found.weights["b"] == 0
    assert found.weights["a"] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0, 12345.678, 1e8])
def test_a_constant_column_does_nothing(constant):
    candidates, targets = planted([1.2])
    alone = LinearFusion.fit(candidates, targets, {"a": Transform.RAW})
    both = candidates.with_source("b", np.full(candidates.item_rows.shape, constant, dtype=np.float32))
    found = LinearFusion.fit(both, targets, RAW2)
    assert found.weights["b"] == 0
    assert found.weights["a"] == pytest.approx(alone.weights["a"], rel=1e-3)
    np.testing.assert_allclose(found.score(both), alone.score(candidates), rtol=1e-3, atol=1e-3)


def test_scale_of_a_column_changes_its_weight_and_nothing_else():
    candidates, targets = planted([1.0, 0.5])
    scaled = candidates.with_source("a", candidates.sources["a"] * np.float32(1000))
    one, other = LinearFusion.fit(candidates, targets, RAW2), LinearFusion.fit(scaled, targets, RAW2)
    assert other.weights["a"] * 1000 == pytest.approx(one.weights["a"], rel=1e-3)
    np.testing.assert_allclose(other.score(scaled), one.score(candidates), rtol=2e-3, atol=2e-3)


def test_users_whose_target_was_missed_teach_nothing():
    candidates, targets = planted([1.0, 0.3])
    wanted = targets.item_rows.copy()
    wanted[::2] = 99  # not among the candidates
    missed = Histories.of(wanted[:, None].tolist())
    kept = np.arange(1, len(wanted), 2)
    found = LinearFusion.fit(candidates, missed, RAW2, l2=0)
    expected = LinearFusion.fit(candidates.take(kept), targets.take(kept), RAW2, l2=0)
    for name in RAW2:
        assert found.weights[name] == pytest.approx(expected.weights[name], abs=1e-3)


def test_without_any_retrieved_target_weights_are_equal_after_scaling():
    candidates, targets = planted([1.0, 0.3])
    found = LinearFusion.fit(candidates, Histories.of([[99]] * len(targets)), RAW2)
    spread = {name: candidates.sources[name].std() for name in RAW2}
    assert found.weights["a"] * spread["a"] == pytest.approx(found.weights["b"] * spread["b"], rel=1e-5)


def test_absent_places_teach_nothing():
    candidates, targets = planted([1.0, 0.4])
    wide = Candidates(
        np.pad(candidates.item_rows, ((0, 0), (0, 3)), constant_values=NO_ITEM),
        np.pad(candidates.score, ((0, 0), (0, 3)), constant_values=-np.inf),
        {name: np.pad(scores, ((0, 0), (0, 3)), constant_values=77.0) for name, scores in candidates.sources.items()},
    )
    found, expected = LinearFusion.fit(wide, targets, RAW2), LinearFusion.fit(candidates, targets, RAW2)
    assert found.weights == pytest.approx(expected.weights, rel=1e-4)


def test_targets_among_against_a_plain_loop():
    rng = np.random.default_rng(1)
    rows = rng.integers(-1, 9, (20, 6))
    wanted = [rng.integers(0, 9, rng.integers(1, 5)).tolist() for _ in range(20)]
    found = targets_among(Candidates(rows, np.zeros(rows.shape, dtype=np.float32)), Histories.of(wanted))
    expected = [[row != NO_ITEM and row in wanted[user] for row in rows[user]] for user in range(20)]
    np.testing.assert_array_equal(found, expected)


def test_saved_and_loaded_fusion_scores_alike(tmp_path):
    candidates, targets = planted([1.0, 0.3])
    fusion = LinearFusion.fit(candidates, targets, {"a": Transform.RAW, "b": Transform.LOG})
    assert fusion.typical["b"] != 1
    fusion.save(tmp_path / "fusion.json")
    loaded = LinearFusion.load(tmp_path / "fusion.json")
    assert loaded == fusion
    assert loaded.transforms["b"] is Transform.LOG
    np.testing.assert_array_equal(loaded.score(candidates), fusion.score(candidates))
    assert set(json.loads((tmp_path / "fusion.json").read_text())) == {"transforms", "weights", "typical", "ranges"}


def test_ties_keep_the_present_order():
    candidates = lists(a=[[1, 2, 1, 2, 1]], b=[[0, 0, 0, 0, 0]])
    fusion = LinearFusion(RAW2, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    assert candidates.ranked_by(fusion.score(candidates)).item_rows.tolist() == [[1, 3, 0, 2, 4]]


def test_only_a_signed_source_may_count_against_an_item():
    candidates, targets = planted([1.0, -1.0])
    signed = LinearFusion.fit(candidates, targets, RAW2, signed=["b", "a source that is not there"])
    assert signed.weights["a"] == pytest.approx(1.0, abs=0.15)
    assert signed.weights["b"] == pytest.approx(-1.0, abs=0.15)
    assert LinearFusion.fit(candidates, targets, RAW2).weights["b"] == 0


def test_without_a_retrieved_target_a_signed_source_says_nothing():
    candidates, _ = planted([1.0, 1.0], users=5)
    found = LinearFusion.fit(candidates, Histories.of([[99]] * 5), RAW2, signed=["b"])
    assert found.weights["a"] > 0
    assert found.weights["b"] == 0


def test_a_stiff_source_is_pulled_to_nothing_harder_than_others():
    candidates, targets = planted([1.0, 1.0])
    even, stiff = (
        LinearFusion.fit(candidates, targets, RAW2, l2=0.01, stiffness=stiffness).weights
        for stiffness in (None, {"b": 20.0})
    )
    assert even["b"] == pytest.approx(even["a"], rel=0.2)
    assert stiff["b"] < 0.7 * even["b"]
    assert stiff["a"] > 0.9 * even["a"]


def test_few_users_are_given_the_best_source_alone_and_not_a_mixture():
    """One good source and five that know nothing; a hard pull to 0 would leave all of them alike."""
    candidates, targets = planted([2.0, 0.0, 0.0, 0.0, 0.0, 0.0], users=12)
    sources = dict.fromkeys(candidates.sources, Transform.RAW)
    alone = LinearFusion.fit(candidates, targets, {"a": Transform.RAW}).weights["a"]
    found = LinearFusion.fit(candidates, targets, sources, l2=100.0, around=sources).weights
    assert found["a"] == pytest.approx(alone, rel=0.05)
    assert max(found[name] for name in "bcdef") < 0.05 * alone
    others = LinearFusion.fit(candidates, targets, sources, l2=100.0, around=["b", "c"]).weights
    assert others["a"] < 0.05 * alone


def test_many_users_are_believed_over_the_best_source_alone():
    candidates, targets = planted([1.0, 0.8], users=4000)
    around, plain = (LinearFusion.fit(candidates, targets, RAW2, around=names).weights for names in (RAW2, ()))
    assert around == pytest.approx(plain, rel=0.02)


def test_the_best_source_alone_may_count_against_an_item():
    candidates, targets = planted([-2.0, 0.1], users=200)
    found = LinearFusion.fit(candidates, targets, RAW2, signed=["a"], l2=100.0, around=RAW2).weights
    assert found["a"] < -1


def test_a_constant_source_is_never_the_best_alone():
    candidates, targets = planted([1.0, 0.0], users=50)
    same = candidates.with_source("b", np.ones_like(candidates.sources["b"]))
    assert LinearFusion.fit(same, targets, RAW2, l2=1.0, around=["b"]).weights["b"] == 0


def test_a_column_of_few_candidates_is_pulled_as_if_they_were_all():
    candidates, targets = planted([1.0, 0.8], users=4000)
    few = np.arange(8) < 2  # of the eight in every list
    silent = candidates.with_source("b", candidates.sources["b"] * few.astype(np.float32) * np.float32(1e-3))
    pulls = (0.0, 0.05)
    by_all, within = (
        [LinearFusion.fit(silent, targets, RAW2, l2=l2, scaled_within=where).weights["b"] for l2 in pulls]
        for where in (None, {"b": np.broadcast_to(few, candidates.item_rows.shape)})
    )
    assert within[0] == pytest.approx(by_all[0], rel=1e-3)
    # Of variance 1 within, 1/4 over all: four times the pull.
    four_times = LinearFusion.fit(silent, targets, RAW2, l2=pulls[1], stiffness={"b": 4.0}).weights["b"]
    assert within[1] == pytest.approx(four_times, rel=0.05)
    assert within[1] < 0.9 * by_all[1]


def test_a_column_that_is_constant_within_its_candidates_is_scaled_over_all():
    candidates, targets = planted([1.0])
    marked = candidates.item_rows < 3
    shown = candidates.with_source("b", marked.astype(np.float32))
    plain, within = (
        LinearFusion.fit(shown, targets, RAW2, signed=["b"], scaled_within=where).weights
        for where in (None, {"b": marked})
    )
    assert within == plain
