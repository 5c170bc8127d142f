"""A retriever as files: safetensors, Parquet and JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from data.schema import Scores
from fusion.linear import LinearFusion
from fusion.network import FusionNetwork
from index.base import VectorIndex
from retrieval.encode import EncoderConfig, TextSpace, load_encoder
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.fit import FittedRetriever, Recipe
from retrieval.history_reader import HistoryReader
from retrieval.own_weights import OwnWeights
from retrieval.retriever import Retriever, RetrieverConfig
from retrieval.stand_ins import load_stand_ins, save_stand_ins
from retrieval.topics import Topics, beside
from retrieval.towers import TwoTowers
from retrieval.transitions import Transitions, TransitionsConfig
from retrieval.trend import Trend
from retrieval.user_tower import UserTowerKind
from retrieval.words import Words
from store.assets import resolve_model
from store.errors import CorruptArtifact

CARD, TOWERS, TABLES, FUSION = "retriever.json", "towers.safetensors", "tables.safetensors", "fusion.json"
ENCODER = "text"
VECTORS, NETWORK = "vectors.safetensors", "network.safetensors"


@dataclass(frozen=True)
class RetrieverCard:
    """What retriever.json says.

    Attributes:
        text_vectors: key of the text vectors that the towers were trained on.
        tuned: whether the folder holds a text encoder of its own.
        records: training records, for reports.
        fused_ndcg10: validation NDCG@10 of the fused lists; 0 for a final fit, which asks nobody.
        own_weights: what validation said about parts of the candidates; a final fit has asked nobody.
    """

    config: RetrieverConfig
    transitions: TransitionsConfig
    epochs: dict[str, int]
    tower_weights: dict[UserTowerKind, float]
    tuning_rounds: int
    schedule_shares: dict[str, float]
    text_vectors: str
    tuned: bool
    records: list[dict[str, Any]]
    fused_ndcg10: float
    own_weights: tuple[OwnWeights, ...]


def save_retriever(folder: Path, fitted: FittedRetriever, *, text_vectors: str) -> None:
    """Writes a fitted retriever without its text and item vectors, which are artifacts of their own."""
    retriever, recipe = fitted.retriever, fitted.recipe
    weights = {
        f"{member.name}.{name}": weight.contiguous()
        for member in retriever.towers.members
        for name, weight in member.towers.state_dict().items()
    }
    save_tensors(weights, folder / TOWERS)
    whitening = retriever.text_space.whitening
    kept = {} if whitening is None else {"whitening": whitening}
    save_file({"recent_popularity": retriever.recent_popularity, **kept}, folder / TABLES)
    retriever.transitions.save(folder)
    retriever.trend.save(folder)
    retriever.words.save(folder)
    if retriever.config.topics:
        retriever.topics.save(folder)
    save_stand_ins(folder, retriever.transitions.stand_ins)
    retriever.fusion.save(folder / FUSION)
    if retriever.network is not None:
        retriever.network.save(folder / NETWORK)
    if fitted.encoder is not None:
        fitted.encoder.save_pretrained(str(folder / ENCODER))
    card = {
        "config": retriever.config.model_dump(mode="json"),
        "transitions": recipe.transitions.model_dump(mode="json"),
        "epochs": dict(recipe.epochs),
        "tower_weights": dict(recipe.tower_weights),
        "tuning_rounds": recipe.tuning_rounds,
        "schedule_shares": dict(recipe.schedule_shares),
        "text_vectors": text_vectors,
        "tuned": fitted.encoder is not None,
        "records": fitted.records,
        "fused_ndcg10": fitted.fused_ndcg10,
        "own_weights": [asdict(found) for found in fitted.own_weights],
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def read_card(folder: Path) -> RetrieverCard:
    """What a retriever folder says of itself.

    Raises:
        CorruptArtifact: when it cannot be read.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return RetrieverCard(
            config=RetrieverConfig.model_validate({"topics": 0} | card["config"]),
            transitions=TransitionsConfig.model_validate(card["transitions"]),
            epochs=card["epochs"],
            tower_weights={UserTowerKind(kind): weight for kind, weight in card["tower_weights"].items()},
            tuning_rounds=card["tuning_rounds"],
            # Without these three, as without topics, a card of before they were told can still be served.
            schedule_shares=card.get("schedule_shares", {}),
            text_vectors=card["text_vectors"],
            tuned=card["tuned"],
            records=card["records"],
            fused_ndcg10=card.get("fused_ndcg10", 0.0),
            own_weights=tuple(OwnWeights.of(found) for found in card.get("own_weights", [])),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise _corrupt(folder, error) from error


def read_recipe(folder: Path) -> Recipe:
    """What validation chose when this retriever was fitted."""
    card = read_card(folder)
    return Recipe(
        card.transitions,
        card.epochs,
        card.tower_weights,
        LinearFusion.load(folder / FUSION),
        card.tuning_rounds,
        card.schedule_shares,
        _network(folder),
    )


def load_retriever(
    folder: Path,
    *,
    texts: Sequence[str],
    text_vectors: Scores,
    index: Callable[[Scores], VectorIndex] | VectorIndex,
) -> Retriever:
    """The retriever that `save_retriever` wrote.

    Args:
        texts: N item texts, for towers that read histories in words; these load the encoder when first asked.
        text_vectors: (N, E) float32, those named by the card.
        index: an index of its item vectors, or what makes one of them.

    Raises:
        CorruptArtifact: when a file is missing or unreadable.
    """
    card = read_card(folder)
    try:
        tables = load_file(folder / TABLES)
        popularity = tables["recent_popularity"]
        space = TextSpace(text_vectors.mean(axis=0), tables["whitening"] if card.config.whiten_text else None)
        text = space(text_vectors)
        words = Words.load(folder)
        topics = Topics.load(folder) if card.config.topics else Topics.of(words, 0)
        read = beside(text, topics.read(words.vectors))
        towers = _load_towers(folder, card, read, _reader(folder, card, texts, text_vectors, space))
        stand_ins = load_stand_ins(folder, len(text))
        transitions = replace(Transitions.load(folder, len(text), card.transitions), stand_ins=stand_ins)
        trend = Trend.load(folder, card.config.trend_days)
        fusion, network = LinearFusion.load(folder / FUSION), _network(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise _corrupt(folder, error) from error
    item_vectors = towers.item_vectors()
    return Retriever(
        config=card.config,
        towers=towers,
        transitions=transitions,
        fusion=fusion,
        item_vectors=item_vectors,
        text=text,
        text_space=space,
        words=words,
        topics=topics,
        trend=trend,
        recent_popularity=popularity,
        index=index(item_vectors) if callable(index) else index,
        network=network,
    )


def _network(folder: Path) -> FusionNetwork | None:
    """None where validation kept none."""
    return FusionNetwork.load(folder / NETWORK) if (folder / NETWORK).exists() else None


def load_own_encoder(folder: Path, settings: EncoderConfig) -> Any:
    """The encoder that read the catalog for this retriever: its own tuned one, or the one that its config names."""
    if read_card(folder).tuned:
        return load_encoder(str(folder / ENCODER), settings)
    source = resolve_model(settings.model)
    return load_encoder(source.path_or_id, settings, revision=source.revision)


def _reader(
    folder: Path, card: RetrieverCard, texts: Sequence[str], text_vectors: Scores, space: TextSpace
) -> HistoryReader | None:
    if not card.config.text.copies:
        return None
    return HistoryReader(
        texts,
        text_vectors,
        load_encoder=lambda settings: load_own_encoder(folder, settings),
        config=card.config.reading,
        space=space,
    )


def _load_towers(folder: Path, card: RetrieverCard, text: Scores, reader: HistoryReader | None) -> TowerEnsemble:
    tensors = load_tensors(folder / TOWERS)
    members = []
    for kind, config in card.config.towers.items():
        for copy in range(1, config.copies + 1):
            member = Member(kind, copy, TwoTowers(torch.from_numpy(text), config, reader=reader))
            prefix = f"{member.name}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            member.towers.load_state_dict(own)
            members.append(member)
    return TowerEnsemble(tuple(members), card.tower_weights)


def save_vectors(folder: Path, vectors: Scores) -> None:
    """Writes an (N, D) table of vectors."""
    save_file({"vectors": np.ascontiguousarray(vectors)}, folder / VECTORS)


def load_vectors(folder: Path) -> Scores:
    """Maps what `save_vectors` wrote: pages are read when first needed, and shared by the processes of a machine.

    The array may be written to; what is written stays with this process.

    Raises:
        CorruptArtifact: when it cannot be read.
    """
    path = folder / VECTORS
    try:
        with safe_open(path, framework="numpy") as file:
            table = file.get_slice("vectors")
            shape, kind = tuple(table.get_shape()), table.get_dtype()
        if kind != "F32" or 0 in shape:
            return np.asarray(load_file(path)["vectors"], dtype=np.float32)
        # The one table of the file stands at its end, whose place safetensors has just checked.
        start = path.stat().st_size - 4 * prod(shape)
        return np.asarray(np.memmap(path, np.float32, mode="c", offset=start, shape=shape))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _corrupt(folder, error) from error


def _corrupt(folder: Path, error: Exception) -> CorruptArtifact:
    return CorruptArtifact(f"{folder} cannot be read ({error}): make it again with 'python cli.py train-retriever'")
