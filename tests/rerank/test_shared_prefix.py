"""The attention against the same with a mask over all pairs of tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.packing import NO_AGE, Packed, Prompt, pack
from rerank.shared_prefix import Row, attention

WIDTH, SCALING = 6, 0.4
LAYER = SimpleNamespace(layer_idx=0)
PROMPTS = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=4)), min_size=1, max_size=3)


def prompt(prefix: int, candidates: list[int]) -> Prompt:
    return Prompt(np.arange(prefix), np.full(prefix, NO_AGE), tuple(np.arange(length) + 10 for length in candidates))


def masked(packed: Packed, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool):
    """(L, H, d) by a mask over all pairs."""
    owner = torch.cat([torch.full((span.end - span.start,), place) for place, span in enumerate(packed.spans)])
    first = torch.tensor([span.segment for span in packed.spans])[owner]
    own = packed.segments[:, None] == packed.segments[None]
    prefix = (owner[:, None] == owner[None]) & (packed.segments == first)[None]
    visible = own | prefix
    if causal:
        visible &= torch.ones_like(visible).tril()
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    weights = (query @ key.transpose(1, 2) * SCALING).masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value).transpose(0, 1)


def drawn(tokens: int, *, heads: int, kv_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(count, tokens, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
            for count in (heads, kv_heads, kv_heads)]  # fmt: skip


def run(packed: Packed, tensors: list[torch.Tensor], row: Row) -> torch.Tensor:
    found, _ = attention(LAYER, *(tensor[None] for tensor in tensors), None, scaling=SCALING, row=row)
    return found[0]


@given(PROMPTS, st.booleans(), st.sampled_from([(2, 2), (4, 2), (3, 1)]))
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_those_of_a_mask(lengths, causal, heads):
    packed = pack([prompt(*one) for one in lengths])
    ours = drawn(len(packed.input_ids), heads=heads[0], kv_heads=heads[1])
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    found = run(packed, ours, Row(packed.spans, causal))
    expected = masked(packed, *theirs, causal=causal)
    torch.testing.assert_close(found, expected)
    shake = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    (found * shake).sum().backward()
    (expected * shake).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("causal", [True, False])
def test_a_remembered_prefix_gives_what_reading_it_again_gives(causal):
    prompts = [prompt(4, [2, 3]), prompt(3, [1])]
    whole = pack(prompts)
    tensors = [tensor.detach() for tensor in drawn(len(whole.input_ids), heads=4, kv_heads=2)]
    row = Row(whole.spans, causal, remember=True)
    expected = run(whole, tensors, row)
    # The first prompt's prefix is remembered, the second one's read again.
    again = pack(prompts, [row.prefix_states(0), None])
    kept = [tensor[:, 4:] for tensor in tensors]
    assert len(again.input_ids) == len(whole.input_ids) - 4
    torch.testing.assert_close(again.position_ids, whole.position_ids[4:])
    torch.testing.assert_close(run(again, kept, Row(again.spans, causal)), expected[4:])


def test_states_know_their_bytes_and_do_not_change_with_the_row():
    packed = pack([prompt(4, [2])])
    tensors = [tensor.detach() for tensor in drawn(6, heads=2, kv_heads=2)]
    row = Row(packed.spans, causal=True, remember=True)
    run(packed, tensors, row)
    states = row.prefix_states(0)
    assert states.bytes == 2 * 2 * 4 * WIDTH * 8
    before = states.layers[0][0].clone()
    tensors[1].zero_()
    torch.testing.assert_close(states.layers[0][0], before)
