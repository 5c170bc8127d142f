"""What a saved reranker says of itself: which base model it stands on, of which kind and shape it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.errors import CorruptArtifact

FORMAT = 2
ADAPTER_DIR, HEAD_FILE, CARD_FILE = "adapter", "head.safetensors", "reranker.json"


@dataclass(frozen=True, slots=True)
class BaseModelName:
    """Which frozen model a reranker stands on: a name for people and the fingerprint that is checked."""

    name: str
    fingerprint: str


def read_card(folder: Path) -> dict[str, Any]:
    """What reranker.json says: format, kind, base and config.

    Raises:
        CorruptArtifact: when it cannot be read, or is of an unknown format.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, where this version reads {FORMAT}")
        BaseModelName(**card["base"])
        _ = card["config"], card["kind"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise corrupt(folder, error) from error
    return card


def corrupt(folder: Path, error: Exception) -> CorruptArtifact:
    """What to raise where a saved reranker cannot be read."""
    return CorruptArtifact(
        f"the reranker in {folder} cannot be read ({error}): make it again with 'python cli.py train-reranker'"
    )
