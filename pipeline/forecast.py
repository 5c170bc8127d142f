"""How long a quickstart will take on this machine, from the data's size and three short probes."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.workspace import Workspace
from retrieval.encode import encode_texts, load_encoder
from retrieval.fused_softmax import fused_softmax_loss
from retrieval.objective import samples_softmax
from retrieval.towers import SequenceConfig, TextConfig, TowerConfig
from store.hardware import computes_bfloat16, device

PROBE_TEXTS = 192
PROBE_POSITIONS, PROBE_ITEMS = 512, 8192
USUAL_EPOCHS = 6
"""Early stopping ends most trainings there."""
BLOCK_SLOWNESS = 3.5
"""Time of a transformer's block over that of its matrix products, if they ran as fast as those of the softmax."""
ITEM_OPERATIONS = 7e5
"""Of every item in every step, in the same measure: its text mapped, its residual dropped, its weights moved."""
RERANK_SLOWNESS = 1.5
"""Time of a packed pass over that of its matrix products alone."""
RERANKER_WEIGHTS = 11e6
"""Of the encoder, beside its embeddings: two operations each for a token that is read, six for one that is learnt."""
EARNS_WEIGHT = 0.5
"""Only with a weight is the reranker asked in an evaluation and fitted once more: nobody knows beforehand."""
NETWORK_SECONDS = 0.006
"""For each user who teaches the network over the sources, cross-validation included."""
JUDGING_SECONDS = 0.03
"""For each user asked: lists of all systems, of each source and without it, and their figures."""
BASELINE_SECONDS = 7e-5
"""For each kind and interaction in training, tuning included; EASE's matrix comes on top."""


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
    """Measures this machine for a few seconds and multiplies; good to a factor of two.

    Of all that a quickstart makes: trainings, an evaluation on validation, which asks group B alone, and a final fit.
    """
    items, flops = len(ws.dataset.catalog), _matrix_flops()
    settings, baselines = ws.config.reranker, ws.config.baselines
    asked = min(evaluation_users or len(ws.selectors), len(ws.selectors))
    a_user = 2 * RERANKER_WEIGHTS * _prompt_tokens(ws, settings.depth) * RERANK_SLOWNESS / flops / 60
    taught = min(_reranker_minutes(ws, flops), settings.train.budget_minutes)
    towers = min(_tower_minutes(ws), ws.config.retriever.train.budget_minutes)
    ease = 0.0 if items > baselines.ease_max_items else len(baselines.ease_l2) * items**3 / flops / 60
    fits = BASELINE_SECONDS * len(ws.split.train.item_rows) * len(baselines.kinds) / 60
    steps = {
        "reading the catalog": (items + _histories_in_items(ws)) / _texts_per_second(ws) / 60,
        "towers": towers,
        "network": _network_users(ws) * NETWORK_SECONDS / 60,
        "reranker": taught + min(len(ws.selectors), settings.fusion_users) * a_user,
        "baselines": ease + fits,
        "evaluation": asked * (EARNS_WEIGHT * a_user + JUDGING_SECONDS / 60),
        "final fit": towers + EARNS_WEIGHT * taught,
    }
    return Forecast(steps if asked else {**steps, "baselines": 0.0})


def tower_operations(config: TowerConfig, *, positions: int, items: int) -> float:
    """Work of the usual training of all copies of one kind, in multiplications and additions of the softmax.

    Args:
        positions: in one pass.
        items: against which each is held.
    """
    # Forward, and backward to both factors: three products of two operations a weight.
    a_position = 6.0 * items * config.width
    if isinstance(config, SequenceConfig):
        # A block has 12 width² weights: 4 in attention, 8 in the feed-forward.
        a_position += 6.0 * 12 * config.layers * config.width**2 * BLOCK_SLOWNESS
    steps = positions / config.batch_size
    return config.copies * min(USUAL_EPOCHS, config.epochs) * (positions * a_position + steps * items * ITEM_OPERATIONS)


def _prompt_tokens(ws: Workspace, candidates: int) -> float:
    """Of a history and so many candidates, by the length of the texts."""
    prompt = ws.config.reranker.encoder.prompt
    texts = np.array([len(text) for text in ws.dataset.catalog.texts])
    # A token has some three characters, and every text marks around it.
    an_item, a_candidate = (
        float(np.minimum(texts / 3 + 3, most).mean()) for most in (prompt.max_item_tokens, prompt.max_candidate_tokens)
    )
    known = float(np.minimum(ws.split.train.lengths, prompt.max_history_items).mean())
    return min(known * an_item, prompt.max_history_tokens) + candidates * a_candidate


def _reranker_minutes(ws: Workspace, flops: float) -> float:
    """Of its training, without regard to its budget: positions inside the histories, and what group A took next."""
    settings = ws.config.reranker
    inside = np.minimum(np.maximum(ws.split.train.lengths - 1, 0), settings.positions_per_user)
    lists = settings.train.epochs * (int(inside.sum()) + len(ws.learners))
    operations = 6 * RERANKER_WEIGHTS * lists * _prompt_tokens(ws, settings.train.list_size)
    return operations * RERANK_SLOWNESS / flops / 60


def _network_users(ws: Workspace) -> int:
    network = ws.config.retriever.network
    return min(len(ws.learners), network.users) if network.epochs else 0


def _histories_in_items(ws: Workspace) -> float:
    """What text towers read before they are trained, measured in item texts."""
    text, users = ws.config.retriever.text, len(ws.dataset.users)
    if not text.copies:
        return 0.0
    histories = min(users * text.positions_per_user, text.most_positions)
    return histories * text.max_tokens / ws.config.retriever.encoder.max_tokens


def _tower_minutes(ws: Workspace) -> float:
    """Of all towers, without regard to their budget."""
    train = ws.split.train
    counts = np.bincount(train.item_rows, minlength=len(ws.dataset.catalog))
    settings = ws.config.retriever
    items = settings.train.sampled_items if samples_softmax(counts, settings.train.softmax) else int((counts > 0).sum())
    followed = np.maximum(train.lengths - 1, 0)
    return sum(
        tower_operations(config, positions=_positions(config, followed), items=items)
        / _softmax_flops(config.width, low_precision=computes_bfloat16(settings.train.precision))
        / 60
        for config in settings.towers.values()
    )


def _positions(config: TowerConfig, followed: np.ndarray) -> int:
    """In one pass, of histories with `followed` (B,) items that follow another."""
    if isinstance(config, TextConfig):
        return min(int(np.minimum(followed, config.positions_per_user).sum()), config.most_positions)
    return int(followed.sum())


def _matrix_flops() -> float:
    """Operations per second of a float32 matrix product."""
    left, right = torch.randn(512, 256), torch.randn(256, 8192)
    left @ right
    started, times = time.perf_counter(), 20
    for _ in range(times):
        left @ right
    return times * 2 * 512 * 256 * 8192 / (time.perf_counter() - started)


def _softmax_flops(width: int, *, low_precision: bool) -> float:
    """Operations per second of a training step's softmax, most of the work of training, with its gradient."""
    at = device()
    users = torch.randn(PROBE_POSITIONS, width, device=at, requires_grad=True)
    items = torch.randn(PROBE_ITEMS, width, device=at, requires_grad=True)
    targets = torch.zeros(PROBE_POSITIONS, dtype=torch.int64, device=at)
    started, times = 0.0, 4
    for time_around in range(times + 1):
        if time_around == 1:  # the first warms up
            started = time.perf_counter()
        # Reading the loss waits for the device.
        loss = fused_softmax_loss(users, items, targets, low_precision=low_precision)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()
    return times * 6 * PROBE_POSITIONS * PROBE_ITEMS * width / (time.perf_counter() - started)


def _texts_per_second(ws: Workspace) -> float:
    settings, texts = ws.config.retriever.encoder, ws.dataset.catalog.texts
    encoder = load_encoder(ws.encoder.path_or_id, settings, revision=ws.encoder.revision)
    step = max(1, len(texts) // PROBE_TEXTS)
    sample = texts[::step][:PROBE_TEXTS]
    encode_texts(encoder, sample[:8], settings)
    started = time.perf_counter()
    encode_texts(encoder, sample, settings)
    return len(sample) / (time.perf_counter() - started)
