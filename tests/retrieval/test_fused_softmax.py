import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from retrieval import fused_softmax as module
from retrieval.fused_softmax import fused_softmax_loss
from retrieval.loss import full_softmax_loss


def drawn(positions: int, items: int, width: int, *, scale: float = 1.0, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(positions, width, generator=generator, dtype=dtype) * scale
    table = torch.randn(items, width, generator=generator, dtype=dtype)
    targets = torch.randint(items, (positions,), generator=generator)
    return users.requires_grad_(), table.requires_grad_(), targets


def value_and_gradients(loss, users, table):
    return loss.item(), *torch.autograd.grad(loss, (users, table))


@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_value_and_gradients_are_those_of_plain_cross_entropy(positions, items, width, at_once, smoothing, seed):
    users, table, targets = drawn(positions, items, width, seed=seed)
    loss = F.cross_entropy(users @ table.T, targets, label_smoothing=smoothing)
    plain = value_and_gradients(loss, users, table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "POSITIONS_AT_ONCE", at_once)  # several parts of the positions, the last one shorter
        fused_loss = fused_softmax_loss(users, table, targets, label_smoothing=smoothing)
        fused = value_and_gradients(fused_loss, users, table)
    assert fused[0] == pytest.approx(plain[0], rel=1e-12, abs=1e-14)
    for found, expected in zip(fused[1:], plain[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_its_gradient_is_that_of_finite_differences(smoothing):
    users, table, targets = drawn(5, 7, 3)
    assert torch.autograd.gradcheck(
        lambda u, t: 3 * fused_softmax_loss(u, t, targets, label_smoothing=smoothing), (users, table)
    )


def test_it_is_the_full_softmax_loss_of_the_formula():
    users, table, targets = drawn(6, 8, 3)
    scores = (users @ table.T).detach().numpy()
    expected = np.mean([np.log(np.exp(row).sum()) - row[target] for row, target in zip(scores, targets, strict=True)])
    assert fused_softmax_loss(users, table, targets).item() == pytest.approx(expected)
    assert full_softmax_loss(users @ table.T, targets).item() == pytest.approx(expected)


def test_huge_scores_neither_overflow_nor_vanish():
    users, table, targets = drawn(8, 6, 4, scale=1e4, dtype=torch.float32)
    plain = value_and_gradients(F.cross_entropy(users @ table.T, targets), users, table)
    fused = value_and_gradients(fused_softmax_loss(users, table, targets), users, table)
    assert np.isfinite(fused[0])
    assert fused[0] == pytest.approx(plain[0], rel=1e-5)
    for found, expected in zip(fused[1:], plain[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_score_that_is_not_finite_gives_a_loss_that_is_not():
    users, table, targets = drawn(4, 5, 3)
    with torch.no_grad():
        table[2, 0] = torch.nan
    assert not np.isfinite(fused_softmax_loss(users, table, targets).item())


def test_bfloat16_is_close_in_value_and_direction_and_gives_float32():
    users, table, targets = drawn(200, 300, 32, scale=0.3, dtype=torch.float32)
    plain = value_and_gradients(F.cross_entropy(users @ table.T, targets), users, table)
    loss = fused_softmax_loss(users, table, targets, low_precision=True)
    assert loss.dtype == torch.float32
    fused = value_and_gradients(loss, users, table)
    assert fused[0] == pytest.approx(plain[0], rel=2e-3)
    assert fused[0] != plain[0]  # it did multiply in bfloat16
    for found, expected in zip(fused[1:], plain[1:], strict=True):
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9998
        assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.01)


def test_nothing_of_the_size_of_all_scores_outlives_the_call():
    """What the graph keeps is the gradients of both factors."""
    users, table, targets = drawn(50, 60, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        fused_softmax_loss(users, table, targets)
    assert sorted(map(tuple, kept)) == [(50, 4), (60, 4)]
