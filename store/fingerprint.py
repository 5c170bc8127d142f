"""Short names for contents: equal values have equal fingerprints, in every process and on every machine."""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

DIGITS = 16


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON of `value`.

    Raises:
        TypeError: for what has no canonical form, such as an open file, or keys that are no text.
    """
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def canonical(value: Any) -> Any:
    """`value` as plain JSON: configs as objects, arrays as their dtype, shape and SHA-256, sets sorted.

    Raises:
        TypeError: as `fingerprint`.
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Mapping):
        return _canonical_mapping(value)
    if isinstance(value, list | tuple):
        return [canonical(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((canonical(entry) for entry in value), key=json.dumps)
    return _canonical_object(value)


def _canonical_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    if strange := [key for key in value if not isinstance(key, str)]:
        raise TypeError(f"keys must be text to be fingerprinted: {strange[0]!r}")
    return {str(key): canonical(entry) for key, entry in value.items()}


def _canonical_object(value: Any) -> Any:
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="json"))
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("arrays of objects cannot be fingerprinted")
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "sha256": digest}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    raise TypeError(f"{type(value).__name__} cannot be fingerprinted")
