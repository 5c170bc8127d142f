"""How long a quickstart will take on this machine, from the data's size and two short probes."""

import time
from dataclasses import dataclass

import torch

from pipeline.workspace import Workspace
from retrieval.encode import encode_texts, load_encoder
from retrieval.train import FULL_SOFTMAX_ITEMS

PROBE_TEXTS = 192
USUAL_EPOCHS = 6
"""Early stopping ends most trainings there."""
SOFTMAX_SHARE = 0.35
"""Share of a plain matrix product's speed that a training step reaches."""
RERANK_SECONDS_PER_TOKEN_FLOP = 2.5
"""Time of a packed forward pass over that of its matrix products alone."""


@dataclass(frozen=True)
class Forecast:
    """Expected minutes of each step."""

    steps: dict[str, float]

    @property
    def minutes(self) -> float:
        """Of all steps."""
        return sum(self.steps.values())

    def in_words(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{name} {minutes:.0f}" for name, minutes in self.steps.items() if minutes >= 0.5)
        return f"about {max(self.minutes, 1):.0f} minutes" + (f" ({parts})" if parts else "")


def forecast(ws: Workspace, *, evaluation_users: int) -> Forecast:
    """Measures this machine for a few seconds and multiplies; good to a factor of two."""
    items, users = len(ws.dataset.catalog), len(ws.dataset.users)
    positions = max(len(ws.split.train.item_rows) - users, 0)
    flops = _matrix_flops()
    softmax_items = items if items <= FULL_SOFTMAX_ITEMS else ws.config.retriever.train.sampled_items
    width = ws.config.retriever.towers.text_dim + ws.config.retriever.towers.residual_dim
    epochs = min(USUAL_EPOCHS, ws.config.retriever.train.epochs)
    towers = 6.0 * positions * softmax_items * width * epochs / (flops * SOFTMAX_SHARE) / 60
    asked = min(evaluation_users or users, users)
    tokens = ws.config.reranker.depth * 20 + 150
    reranked = min(len(ws.selectors), ws.config.reranker.fusion_users) + asked
    # Two operations for each of the encoder's eleven million weights beside the embeddings.
    reading = reranked * tokens * 2 * 11e6 * RERANK_SECONDS_PER_TOKEN_FLOP / flops / 60
    ease = (
        0.0 if items > ws.config.baselines.ease_max_items else len(ws.config.baselines.ease_l2) * items**3 / flops / 60
    )
    return Forecast(
        {
            "reading the catalog": items / _texts_per_second(ws) / 60,
            "towers": min(towers, ws.config.retriever.train.budget_minutes),
            "reranker": ws.config.reranker.train.budget_minutes + reading / 2,
            "baselines": ease + users * 4e-5 * len(ws.config.baselines.kinds),
            "evaluation": reading / 2 + asked * 2e-5,
        }
    )


def _matrix_flops() -> float:
    """Operations per second of a float32 matrix product."""
    left, right = torch.randn(512, 256), torch.randn(256, 8192)
    left @ right
    started, times = time.perf_counter(), 20
    for _ in range(times):
        left @ right
    return times * 2 * 512 * 256 * 8192 / (time.perf_counter() - started)


def _texts_per_second(ws: Workspace) -> float:
    settings, texts = ws.config.retriever.encoder, ws.dataset.catalog.texts
    encoder = load_encoder(ws.encoder.path_or_id, settings, revision=ws.encoder.revision)
    step = max(1, len(texts) // PROBE_TEXTS)
    sample = texts[::step][:PROBE_TEXTS]
    encode_texts(encoder, sample[:8], settings)
    started = time.perf_counter()
    encode_texts(encoder, sample, settings)
    return len(sample) / (time.perf_counter() - started)
