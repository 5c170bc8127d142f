"""Which kind of reranker a model makes."""

import json
from pathlib import Path
from typing import Any

from rerank.card import BaseModelName, corrupt, read_card
from rerank.decoder import DecoderReranker
from rerank.encoder import EncoderReranker
from rerank.fit import RerankerConfig
from rerank.packed import PackedReranker
from rerank.prompt import PromptConfig
from store.errors import BadInput, CorruptArtifact

KINDS: dict[str, type[PackedReranker[Any]]] = {kind.kind: kind for kind in (EncoderReranker, DecoderReranker)}


def create_reranker(model_dir: Path, *, base: BaseModelName, config: RerankerConfig, seed: int) -> PackedReranker[Any]:
    """An untrained reranker of the kind that the model is made for.

    Raises:
        BadInput, CorruptArtifact: as `PackedReranker.create`.
    """
    kind = _kind_of(model_dir)
    return KINDS[kind].create(model_dir, base=base, config=getattr(config, kind), seed=seed)


def load_reranker(folder: Path, *, model_dir: Path, model_fingerprint: str) -> PackedReranker[Any]:
    """A reranker that `save` wrote.

    Raises:
        Mismatch, CorruptArtifact: as `PackedReranker.load`.
    """
    kind = read_card(folder)["kind"]
    if kind not in KINDS:
        raise corrupt(folder, ValueError(f"kind {kind!r}, where this version knows {', '.join(KINDS)}"))
    return KINDS[kind].load(folder, model_dir=model_dir, model_fingerprint=model_fingerprint)


def read_prompt_config(folder: Path) -> PromptConfig:
    """How much a reranker that `save` wrote reads, without loading it.

    Raises:
        CorruptArtifact: when its card cannot be read.
        Mismatch: when a newer version wrote it.
    """
    try:
        return PromptConfig.model_validate(read_card(folder)["config"]["prompt"])
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(folder, error) from error


def _kind_of(model_dir: Path) -> str:
    try:
        model_type = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise CorruptArtifact(f"the model in {model_dir} cannot be read: {error}") from error
    for name, kind in KINDS.items():
        if model_type in kind.model_types:
            return name
    known = sorted(name for kind in KINDS.values() for name in kind.model_types)
    raise BadInput(
        f"the model in {model_dir.name} is of type {model_type!r}; a reranker needs one of {', '.join(known)}"
    )
