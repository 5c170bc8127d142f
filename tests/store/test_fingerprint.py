"""Equal values have equal fingerprints, different ones differ."""

import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from store.artifacts import fingerprint


class Colour(StrEnum):
    RED = "red"


class Config(BaseModel):
    colour: Colour = Colour.RED
    depth: int = 3


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_a_fingerprint_is_16_hex_digits_and_repeats(value):
    assert len(fingerprint(value)) == 16
    assert int(fingerprint(value), 16) >= 0
    assert fingerprint(value) == fingerprint(value)


@given(st.dictionaries(st.text(), plain, min_size=2))
def test_the_order_of_keys_does_not_count(value):
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)


@given(st.lists(st.integers(), min_size=2, unique=True))
def test_the_order_of_lists_counts_and_of_sets_does_not(values):
    backwards = values[::-1]
    assert fingerprint(values) != fingerprint(backwards)
    assert fingerprint(set(values)) == fingerprint(set(backwards))


def test_arrays_count_by_type_shape_and_bytes():
    rows = np.arange(6)
    prints = [
        fingerprint(array)
        for array in (rows, rows.reshape(2, 3), rows.astype(np.int32), rows + 1, rows.astype(np.uint64))
    ]
    assert len(set(prints)) == 5
    assert fingerprint(rows.reshape(2, 3).T.copy()) == fingerprint(rows.reshape(2, 3).T)


def test_configs_enums_paths_and_numpy_numbers_are_what_they_say():
    assert fingerprint(Config()) == fingerprint({"colour": "red", "depth": 3})
    assert fingerprint(Config(depth=np.int64(4).item())) != fingerprint(Config())
    assert fingerprint((np.int64(3), Colour.RED, Path("a/b"))) == fingerprint([3, "red", "a/b"])
    assert fingerprint(b"a") != fingerprint("a")


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([None]), open])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError):
        fingerprint(value)


def test_another_process_agrees():
    code = 'from store.artifacts import fingerprint; print(fingerprint({"a": {"x", "y", "z"}, "b": 0.1}))'
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint({"b": 0.1, "a": {"z", "y", "x"}})
