"""A planted rule that no weighted sum can say: of two sources exactly one must be loud."""

import numpy as np
import pytest
import torch

from data.schema import NO_ITEM, Candidates, Histories
from eval.metrics import ndcg10
from fusion.linear import LinearFusion, Transform
from fusion.network import NETWORK, FusionNetwork, NetworkConfig, features

SOURCES = ("a", "b")
SUM = LinearFusion(dict.fromkeys(SOURCES, Transform.RAW), {"a": 0.1, "b": 0.1}, dict.fromkeys(SOURCES, 1.0))
CONFIG = NetworkConfig(epochs=6, reach=20, width=16, learning_rate=0.01, batch_size=32)


def either(users: int, *, seed: int, depth: int = 20, absent: int = 0) -> tuple[Candidates, Histories]:
    """Lists in the order of the sum, and a target for each: the item whose a · b is the smallest."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, users, depth)).astype(np.float32)
    rows = np.tile(np.arange(depth, dtype=np.int64), (users, 1))
    target = (a * b).argmin(axis=1)
    if absent:
        rows[:, -absent:] = NO_ITEM
        target = (a * b)[:, :-absent].argmin(axis=1)
    lists = Candidates(rows, np.zeros((users, depth), dtype=np.float32), {"a": a, "b": b})
    return lists.ranked_by(SUM.score(lists)), Histories.of(target[:, None].tolist())


def learnt(lists: Candidates, targets: Histories, config: NetworkConfig = CONFIG, *, seed: int = 0) -> FusionNetwork:
    """The network of the last epoch."""
    seen: list[FusionNetwork] = []
    FusionNetwork.train(
        lists,
        targets,
        SUM,
        sources=SOURCES,
        config=config,
        seed=seed,
        watched=lambda epoch, network: seen.append(network.copy()),
    )
    assert len(seen) == config.epochs
    return seen[-1]


@pytest.fixture(scope="module")
def network() -> FusionNetwork:
    return learnt(*either(1500, seed=0))


def test_it_learns_what_no_weighted_sum_can_say(network):
    lists, targets = either(300, seed=1)
    best_sum = LinearFusion.fit(lists, targets, SUM.transforms, signed=SOURCES)
    by_sum = ndcg10(lists.ranked_by(best_sum.score(lists)), targets).mean()
    assert ndcg10(network.reordered(lists, SUM), targets).mean() > by_sum + 0.3


def test_it_leaves_places_beyond_its_reach_where_they_are():
    lists, targets = either(600, seed=0)
    short = learnt(lists, targets, CONFIG.model_copy(update={"reach": 5, "epochs": 3}))
    found = short.reordered(lists, SUM)
    np.testing.assert_array_equal(found.item_rows[:, 5:], lists.item_rows[:, 5:])
    assert not np.array_equal(found.item_rows[:, :5], lists.item_rows[:, :5])
    np.testing.assert_array_equal(np.sort(found.item_rows[:, :5], axis=1), np.sort(lists.item_rows[:, :5], axis=1))
    assert (np.diff(found.score, axis=1) <= 0).all()


def test_what_it_adds_is_told_as_a_source_and_makes_the_score(network):
    lists, _ = either(10, seed=2)
    found = network.reordered(lists, SUM)
    np.testing.assert_allclose(found.score, SUM.score(found) + found.sources[NETWORK], rtol=1e-5, atol=1e-5)


def test_a_list_of_one_user_is_ordered_as_among_others(network):
    lists, _ = either(40, seed=3)
    together = network.reordered(lists, SUM)
    for place in (0, 17):
        alone = network.reordered(lists.take(np.array([place])), SUM)
        np.testing.assert_array_equal(alone.item_rows[0], together.item_rows[place])


def test_places_without_an_item_change_nothing_and_stay_last(network):
    lists, _ = either(30, seed=4, absent=6)
    found = network.reordered(lists, SUM)
    assert (found.item_rows[:, -6:] == NO_ITEM).all()
    assert (found.sources[NETWORK][:, -6:] == 0).all()
    np.testing.assert_array_equal(found.item_rows[:, :14], network.reordered(lists.head(14), SUM).item_rows)
    nobody = network.reordered(Candidates(np.full((1, 3), NO_ITEM), np.full((1, 3), -np.inf), lists_of_zeros(3)), SUM)
    assert (nobody.item_rows == NO_ITEM).all()


def lists_of_zeros(depth: int) -> dict[str, np.ndarray]:
    return {name: np.zeros((1, depth), dtype=np.float32) for name in SOURCES}


def test_a_feature_far_from_all_that_was_learnt_says_no_more_than_a_far_one(network):
    lists, _ = either(1, seed=5)
    far, farther = (
        Candidates(lists.item_rows, lists.score, {**lists.sources, "a": lists.sources["a"] * np.float32(factor)})
        for factor in (1e6, 1e9)
    )
    np.testing.assert_allclose(network.corrections(far, SUM), network.corrections(farther, SUM), atol=1e-4)


def test_a_column_that_never_varies_is_no_feature():
    lists, targets = either(200, seed=0)
    still = lists.with_source("a", np.full(lists.item_rows.shape, 7, dtype=np.float32))
    found = learnt(still, targets, CONFIG.model_copy(update={"epochs": 1}))
    assert np.isfinite(found.corrections(still, SUM)).all()


def test_it_is_kept_in_a_file(network, tmp_path):
    network.save(tmp_path / "network.safetensors")
    loaded = FusionNetwork.load(tmp_path / "network.safetensors")
    lists, _ = either(20, seed=6)
    assert (loaded.sources, loaded.reach) == (network.sources, network.reach)
    np.testing.assert_array_equal(loaded.corrections(lists, SUM), network.corrections(lists, SUM))


def test_the_same_seed_gives_the_same_network_and_moves_no_one_elses_draws():
    lists, targets = either(100, seed=0)
    few = CONFIG.model_copy(update={"epochs": 2})
    torch.manual_seed(5)
    one = learnt(lists, targets, few)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    np.testing.assert_array_equal(learnt(lists, targets, few).corrections(lists, SUM), one.corrections(lists, SUM))
    assert not np.allclose(learnt(lists, targets, few, seed=1).corrections(lists, SUM), one.corrections(lists, SUM))


def test_weights_that_are_no_longer_finite_are_shown_to_nobody():
    lists, targets = either(200, seed=0)
    wild = CONFIG.model_copy(update={"learning_rate": 1e30})
    FusionNetwork.train(lists, targets, SUM, sources=SOURCES, config=wild, seed=0, watched=pytest.fail)


def test_lists_without_their_target_teach_nothing():
    lists, _ = either(20, seed=0)
    nothing = Histories.of([[99]] * 20)
    FusionNetwork.train(lists, nothing, SUM, sources=SOURCES, config=CONFIG, seed=0, watched=pytest.fail)


def test_an_item_is_described_by_value_distance_to_the_best_and_place():
    lists = Candidates(
        np.array([[4, 2, NO_ITEM]]),
        np.array([[0.3, 0.1, -np.inf]], dtype=np.float32),
        {"a": np.array([[1, 3, 9]], dtype=np.float32), "b": np.array([[2, 2, 0]], dtype=np.float32)},
    )
    found = features(lists, SUM, SOURCES)[0]  # (3, 9): of the sum, a and b each
    second = np.log(2.0)
    np.testing.assert_allclose(found[0], [0.3, 1, 2, 0, -2, 0, 0, second, 0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0.1, 3, 2, -0.2, 0, 0, second, 0, second], rtol=1e-6)
