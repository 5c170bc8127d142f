import math

import numpy as np
import pytest
import torch

from rerank.head import PairHead, segment_weights
from rerank.packing import NO_AGE, Prompt, pack


def example() -> Prompt:
    """[CLS] a a a | b of history, candidates of 1 and 2 tokens."""
    ages = np.array([NO_AGE, 1, 1, 1, 0])
    return Prompt(np.array([2, 5, 5, 3, 6]), ages, (np.array([7]), np.array([8, 3])))


def test_weights_written_out() -> None:
    empty = Prompt(np.array([2]), np.array([NO_AGE]), (np.array([7, 3]),))
    weights = segment_weights(pack([example(), empty], pad_id=0), torch.tensor(0.5))
    old, new = 0.5 / 1.5, 1 / 1.5
    assert weights.shape == (2, 3, 8)
    assert weights[0, 0].tolist() == pytest.approx([0, old / 3, old / 3, old / 3, new, 0, 0, 0])
    assert weights[0, 1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert weights[0, 2].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0.5]
    assert weights[1, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert weights[1, 1].tolist() == [0, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert not weights[1, 2].any()  # this prompt has no second candidate


def test_an_untrained_head_is_the_cosine_of_the_pooled_segments() -> None:
    states = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(1))
    head = PairHead(12, width=4, temperature=3.0, decay=0.5)
    scores = head(states, pack([example()], pad_id=0))
    rows = states[0].numpy().astype(np.float64)
    history = 0.5 * rows[1:4].mean(axis=0) + rows[4]
    for place, candidate in enumerate((rows[5], rows[6:8].mean(axis=0))):
        cosine = history @ candidate / math.sqrt((history @ history) * (candidate @ candidate))
        assert scores[0, place].item() == pytest.approx(3 * cosine, abs=1e-5)


def test_gradient_reaches_every_parameter_once_the_last_layer_has_moved() -> None:
    head = PairHead(12, width=4, temperature=3.0, decay=0.5)
    torch.nn.init.ones_(head.out.weight)
    states = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(1))
    head(states, pack([example()], pad_id=0)).softmax(-1)[0, 0].backward()
    without = [name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()]
    assert without in ([], ["out.bias"])  # a softmax does not feel a shift of all scores
