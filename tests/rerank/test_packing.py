import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.packing import NO_AGE, PADDING, Packed, Prompt, additive_mask, pack, split_long


def prompt(prefix: list[int], candidates: list[list[int]], *, cut: int = 0) -> Prompt:
    ages = np.array([NO_AGE, *range(len(prefix) - 2, -1, -1)], dtype=np.int64)
    return Prompt(np.array(prefix), ages, tuple(np.array(ids) for ids in candidates), cut)


def test_layout_of_a_batch_written_out() -> None:
    packed = pack([prompt([2, 9, 3], [[7, 3], [8, 8, 3]]), prompt([2, 5], [[6, 3]])], pad_id=0)
    assert packed.input_ids.tolist() == [[2, 9, 3, 7, 3, 8, 8, 3], [2, 5, 6, 3, 0, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert packed.segment_ids.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1] + 4 * [PADDING]]
    assert packed.ages.tolist() == [[NO_AGE, 1, 0] + 5 * [NO_AGE], [NO_AGE, 0] + 6 * [NO_AGE]]
    assert packed.candidates == 2


@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=9).map(lambda ids: sorted(ids, key=lambda i: (i < 0, i))),
    st.booleans(),
)
def test_mask_lets_a_token_see_its_own_segment_and_the_prefix_and_nothing_else(ids: list[int], causal: bool) -> None:
    mask = additive_mask(torch.tensor([ids]), causal=causal)
    assert mask.shape == (1, 1, len(ids), len(ids))
    assert mask.dtype == torch.float32
    for query, own in enumerate(ids):
        for key, other in enumerate(ids):
            sees = (own == other or (other == 0 and own > 0)) and (key <= query or not causal)
            assert mask[0, 0, query, key] == (0 if sees else torch.finfo(torch.float32).min)


def test_mask_is_made_in_the_type_of_the_queries() -> None:
    assert additive_mask(torch.tensor([[0, 1]]), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("max_tokens", [1, 5, 6, 8, 100])
def test_parts_of_a_long_prompt_hold_every_candidate_once_within_the_limit(max_tokens: int) -> None:
    whole = prompt([2, 9, 3], [[10], [11, 11], [12], [13, 13], [14, 14, 14]], cut=2)
    parts = split_long(whole, max_tokens=max_tokens)
    assert [ids[0] for part in parts for ids in part.candidates] == [10, 11, 12, 13, 14]
    assert all(part.prefix.tolist() == [2, 9, 3] for part in parts)
    assert all(part.tokens <= max_tokens or len(part.candidates) == 1 for part in parts)
    assert sum(part.cut_candidates for part in parts) == 2
    if max_tokens == 100:
        assert len(parts) == 1


def test_a_candidate_without_tokens_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="candidate 1 of prompt 0 has no token"):
        pack([prompt([2], [[5], []])], pad_id=0)
    with pytest.raises(ValueError, match="no prompt"):
        pack([], pad_id=0)


def test_a_prompt_without_candidates_packs_to_its_prefix() -> None:
    packed: Packed = pack([prompt([2, 5], [])], pad_id=0)
    assert packed.candidates == 0
    assert packed.segment_ids.tolist() == [[0, 0]]
