import numpy as np
import pytest

from data.schema import NO_ITEM, Candidates
from rerank.gate import FEATURES, Gate, gate_features

RNG = np.random.default_rng(0)


def lists(users: int, *, width: int = 20, sharpness: np.ndarray | None = None) -> Candidates:
    """Falling scores; a sharp list is sure of its order."""
    steps = RNG.exponential(size=(users, width)) * (1.0 if sharpness is None else sharpness[:, None])
    score = -np.cumsum(steps, axis=1).astype(np.float32)
    rows = np.tile(np.arange(width), (users, 1)).astype(np.int64)
    return Candidates(rows, score)


def planted(users: int) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Half of the lists are flat, and reranking gains on them and loses a little on the others."""
    flat = RNG.random(users) < 0.5
    found = lists(users, sharpness=np.where(flat, 0.05, 2.0))
    gains = np.where(flat, 0.2, -0.05) + 0.3 * RNG.standard_normal(users)
    return found, np.full(users, 7), gains


def test_features_written_out():
    score = np.log(np.array([[0.5, 0.3, 0.2], [1.0, 1.0, 1.0]], dtype=np.float32))
    rows = np.array([[3, 4, 5], [6, NO_ITEM, NO_ITEM]])
    found = gate_features(Candidates(rows, np.where(rows == NO_ITEM, -np.inf, score)), np.array([0, 9]))
    assert found.shape == (2, len(FEATURES))
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2))
    np.testing.assert_allclose(found[0], [0, 0.5, 0.2, entropy, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], [np.log(10), 1, 1, 0, 0], atol=1e-6)


def test_it_finds_who_gains_and_beats_chance_on_users_it_has_not_seen():
    gate = Gate.fit(*planted(4000))
    half = next(point for point in gate.curve if point.share == 0.5)
    everybody = gate.curve[-1]
    assert half.gain > 1.1 * everybody.gain  # reranking the others only loses
    assert half.random == pytest.approx(everybody.gain / 2)
    found, lengths, gains = planted(4000)
    opened = gate.opens(found, lengths, share=0.5)
    assert 0.45 < opened.mean() < 0.55
    assert gains[opened].mean() > 0.15
    assert gains[~opened].mean() < 0


def test_a_gate_that_knows_nothing_is_no_better_than_chance():
    found = lists(4000)
    gate = Gate.fit(found, RNG.integers(1, 50, 4000), 0.1 + 0.3 * RNG.standard_normal(4000))
    half = next(point for point in gate.curve if point.share == 0.5)
    assert abs(half.gain - half.random) < 0.02


@pytest.mark.parametrize(("share", "opened"), [(0.0, 0.0), (0.2, 0.2), (0.8, 0.8), (1.0, 1.0)])
def test_about_the_share_asked_for_is_opened(share, opened):
    gate = Gate.fit(*planted(2000))
    found, lengths, _ = planted(2000)
    assert gate.opens(found, lengths, share=share).mean() == pytest.approx(opened, abs=0.05)


def test_the_curve_ends_where_everybody_is_reranked():
    found, lengths, gains = planted(500)
    curve = Gate.fit(found, lengths, gains).curve
    assert [point.share for point in curve] == [round(0.1 * step, 1) for step in range(11)]
    assert curve[0].gain == 0
    assert curve[-1].gain == pytest.approx(gains.mean())


def test_constant_features_and_few_users_do_no_harm():
    score = np.zeros((3, 4), dtype=np.float32)
    rows = np.tile(np.arange(4), (3, 1))
    gate = Gate.fit(Candidates(rows, score), np.array([5, 5, 5]), np.array([0.1, 0.0, 0.2]))
    assert np.isfinite(gate.weights).all()
    assert gate.opens(Candidates(rows, score), np.array([5, 5, 5]), share=1.0).all()


def test_without_users_it_has_no_curve_and_is_open_or_closed_to_all():
    gate = Gate.fit(lists(0), np.zeros(0, dtype=np.int64), np.zeros(0))
    assert gate.curve == ()
    assert gate.opens(lists(3), np.array([1, 2, 3]), share=1.0).all()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    gate = Gate.fit(*planted(200))
    gate.save(tmp_path / "gate.json")
    assert Gate.load(tmp_path / "gate.json") == gate


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_where_nobody_can_be_told_apart_the_share_is_kept_and_always_the_same(share):
    rows = np.array([RNG.permutation(200)[:20] for _ in range(2000)])
    found = Candidates(rows, np.tile(-np.arange(20, dtype=np.float32), (2000, 1)))
    lengths = np.full(2000, 7)
    gate = Gate.fit(found, lengths, np.zeros(2000))
    opened = gate.opens(found, lengths, share=share)
    assert opened.mean() == pytest.approx(share, abs=0.05)
    some = np.arange(50, 90)
    assert gate.opens(found.take(some), lengths[some], share=share).tolist() == opened[some].tolist()
