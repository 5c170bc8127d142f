import math

import numpy as np
import pytest
import torch

from rerank.head import PairHead, pooled_segments
from rerank.packing import NO_AGE, Prompt, pack


def example() -> Prompt:
    """[CLS] a a a | b of history, candidates of 1 and 2 tokens."""
    ages = np.array([NO_AGE, 1, 1, 1, 0])
    return Prompt(np.array([2, 5, 5, 3, 6]), ages, (np.array([7]), np.array([8, 3])))


def test_pooled_segments_written_out() -> None:
    empty = Prompt(np.array([2]), np.array([NO_AGE]), (np.array([7, 3]),))
    packed = pack([example(), empty])
    states = torch.eye(11)  # so that the pooled vectors are the weights
    weights = pooled_segments(states, packed, torch.tensor(0.5))
    old, new = 0.5 / 1.5, 1 / 1.5
    assert weights.shape == (5, 11)
    assert weights[0].tolist() == pytest.approx([0, old / 3, old / 3, old / 3, new, *[0] * 6])
    assert weights[1].tolist() == [0, 0, 0, 0, 0, 1, *[0] * 5]
    assert weights[2].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0.5, 0, 0, 0]
    assert weights[3].tolist() == [*[0] * 8, 1, 0, 0]
    assert weights[4].tolist() == [*[0] * 9, 0.5, 0.5]


def test_an_untrained_head_is_the_cosine_of_the_pooled_segments() -> None:
    states = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    head = PairHead(12, width=4, temperature=3.0, decay=0.5)
    scores = head(states, pack([example()]))
    rows = states.numpy().astype(np.float64)
    history = 0.5 * rows[1:4].mean(axis=0) + rows[4]
    for place, candidate in enumerate((rows[5], rows[6:8].mean(axis=0))):
        cosine = history @ candidate / math.sqrt((history @ history) * (candidate @ candidate))
        assert scores[place].item() == pytest.approx(3 * cosine, abs=1e-5)


def test_gradient_reaches_every_parameter_once_the_last_layer_has_moved() -> None:
    head = PairHead(12, width=4, temperature=3.0, decay=0.5)
    torch.nn.init.ones_(head.out.weight)
    states = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    head(states, pack([example()])).softmax(-1)[0].backward()
    without = [name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()]
    assert without in ([], ["out.bias"])  # a softmax does not feel a shift of all scores
