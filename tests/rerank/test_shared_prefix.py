"""The attention against the same with a mask over all pairs of tokens."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank import blocks
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


@pytest.fixture(autouse=True, scope="module")
def any_padding() -> Iterator[None]:
    """The drawn prompts are of all lengths, and are to go through blocks all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_PADDING", math.inf)
        yield


@given(PROMPTS, st.booleans(), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_values_and_gradients_equal_those_of_a_mask(lengths, causal, heads, in_blocks):
    packed = pack([prompt(*one) for one in lengths])
    ours = drawn(len(packed.input_ids), heads=heads[0], kv_heads=heads[1])
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    row = Row(packed.spans, causal, in_blocks=in_blocks)
    found = run(packed, ours, row)
    assert (row.blocks(0) is not None) == in_blocks
    expected = masked(packed, *theirs, causal=causal)
    torch.testing.assert_close(found, expected)
    shake = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    (found * shake).sum().backward()
    (expected * shake).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_a_remembered_prefix_gives_what_reading_it_again_gives(causal, in_blocks):
    prompts = [prompt(4, [2, 3]), prompt(3, [1])]
    whole = pack(prompts)
    tensors = [tensor.detach() for tensor in drawn(len(whole.input_ids), heads=4, kv_heads=2)]
    row = Row(whole.spans, causal, remember=True, in_blocks=in_blocks)
    expected = run(whole, tensors, row)
    # The first prompt's prefix is remembered, the second one's read again.
    again = pack(prompts, [row.prefix_states(0), None])
    kept = [tensor[:, 4:] for tensor in tensors]
    assert len(again.input_ids) == len(whole.input_ids) - 4
    torch.testing.assert_close(again.position_ids, whole.position_ids[4:])
    torch.testing.assert_close(run(again, kept, Row(again.spans, causal, in_blocks=in_blocks)), expected[4:])


@given(PROMPTS, st.booleans(), st.integers(0, 3), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_blocks_give_what_prompts_one_by_one_give_behind_virtual_tokens_and_remembered_prefixes(
    lengths, causal, virtual, seed
):
    prompts = [prompt(size, candidates or [1]) for size, candidates in lengths]
    whole = pack(prompts)
    query, key, value = drawn(len(whole.input_ids) + virtual, heads=4, kv_heads=2)
    first = Row(whole.spans, causal, remember=True)
    expected = run(whole, [query[:, virtual:], key, value], first)
    known = [bool(seed >> place & 1) for place in range(len(prompts))]
    again = pack(prompts, [first.prefix_states(place) if there else None for place, there in enumerate(known)])
    inside = torch.cat(
        [
            torch.arange(span.start + (span.prefix if there else 0), span.end)
            for span, there in zip(whole.spans, known, strict=True)
        ]
    )
    before = torch.arange(virtual)
    tensors = [query[:, virtual + inside], *(side[:, torch.cat([before, virtual + inside])] for side in (key, value))]
    row = Row(again.spans, causal, remember=True, in_blocks=True)
    torch.testing.assert_close(run(again, tensors, row), expected[inside])
    for place in range(len(prompts)):
        for ours, theirs in zip(row.prefix_states(place).layers[0], first.prefix_states(place).layers[0], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_prompts_of_very_different_lengths_are_not_padded_to_one(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_PADDING", 3.0)
    alike, unlike = pack([prompt(9, [2, 2])] * 3), pack([prompt(90, [2]), *[prompt(2, [2])] * 20])
    assert Row(alike.spans, causal=True, in_blocks=True).blocks(0) is not None
    assert Row(unlike.spans, causal=True, in_blocks=True).blocks(0) is None


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
