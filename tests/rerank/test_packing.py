import numpy as np
import pytest

from rerank.packing import NO_AGE, Prompt, pack, split_long
from rerank.spans import PrefixStates


def prompt(prefix: list[int], candidates: list[list[int]], *, cut: int = 0) -> Prompt:
    ages = np.array([NO_AGE, *range(len(prefix) - 2, -1, -1)], dtype=np.int64)
    return Prompt(np.array(prefix), ages, tuple(np.array(ids) for ids in candidates), cut)


TWO = [prompt([2, 9, 3], [[7, 3], [8, 8, 3]]), prompt([2, 5], [[6, 3]])]


def test_layout_of_a_row_written_out() -> None:
    packed = pack(TWO)
    assert packed.input_ids.tolist() == [2, 9, 3, 7, 3, 8, 8, 3, 2, 5, 6, 3]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3]
    assert packed.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    assert packed.ages.tolist() == [NO_AGE, 1, 0, *[NO_AGE] * 5, NO_AGE, 0, NO_AGE, NO_AGE]
    assert packed.candidates == [2, 1]
    assert packed.candidate_segments.tolist() == [1, 2, 4]
    assert packed.candidate_ends.tolist() == [4, 7, 11]
    assert [(span.start, span.prefix, span.end, span.segment) for span in packed.spans] == [(0, 3, 8, 0), (8, 2, 12, 3)]


def test_a_remembered_prefix_stays_out_of_the_row() -> None:
    packed = pack(TWO, [PrefixStates(()), None])
    assert packed.input_ids.tolist() == [7, 3, 8, 8, 3, 2, 5, 6, 3]
    assert packed.position_ids.tolist() == [3, 4, 3, 4, 5, 0, 1, 2, 3]
    assert packed.segments.tolist() == [1, 1, 2, 2, 2, 3, 3, 4, 4]
    assert packed.candidate_ends.tolist() == [1, 4, 8]
    assert packed.candidates == [2, 1]


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
        pack([prompt([2], [[5], []])])
    with pytest.raises(ValueError, match="no prompt"):
        pack([])


def test_a_prompt_without_candidates_packs_to_its_prefix() -> None:
    packed = pack([prompt([2, 5], [])])
    assert packed.candidates == [0]
    assert packed.segments.tolist() == [0, 0]
    assert packed.candidate_ends.tolist() == []
