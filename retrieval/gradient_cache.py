"""Gradients of a loss over the vectors of a whole catalog, with one chunk's activations in memory.

Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup"): encode all texts without a graph; run the cheap part, from text vectors to loss, and take its
gradient with respect to every vector; encode again, chunk by chunk and with a graph, and send each chunk's
rows of that gradient back through the encoder. The sum is the gradient of the plain loss, at the cost of one
more pass without a graph.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.schema import Rows

SHORTEST = 1e-6
"""A vector this close to the catalog's mean has no direction, and gets no gradient; as in `encode.centred`."""

LossParts = Callable[[Tensor], Iterable[Tensor]]
"""Maps the table of text vectors (N, E) to scalars that add up to the loss.

Each is sent back, and its graph freed, before the next one is asked for; so a loss over many batches of
positions holds the logits of one batch.
"""


@dataclass(frozen=True)
class CatalogEncoder:
    """A sentence-transformer and the texts that it reads, in chunks of like length.

    Attributes:
        model: a SentenceTransformer. In `train()` mode its dropout is on, and is the same for a chunk each
            time that the chunk is encoded under the same seed.
        chunk_texts: texts whose activations are held at a time.
        bfloat16: compute matrix products in bfloat16; weights, gradients and vectors stay float32.
    """

    model: Any
    texts: Sequence[str]
    chunk_texts: int
    bfloat16: bool = False

    @property
    def chunks(self) -> list[Rows]:
        """All item rows, shortest texts first."""
        order = np.argsort([len(text) for text in self.texts], kind="stable")
        return [order[start : start + self.chunk_texts] for start in range(0, len(order), self.chunk_texts)]

    def vectors(self, rows: Rows) -> Tensor:
        """(n, E) float32 vectors of length 1 of the texts at `rows`, with their graph where gradients are on."""
        features = self.model.preprocess([self.texts[row] for row in rows])
        on_device = {name: value.to(self.model.device) for name, value in features.items() if torch.is_tensor(value)}
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16):
            embedded: Tensor = self.model({**features, **on_device})["sentence_embedding"]
        return F.normalize(embedded.float(), dim=1)

    def table(self, *, seed: int = 0) -> Tensor:
        """(N, E) float32 vectors of length 1 of all texts, without a graph; `seed` decides dropout."""
        found: list[Tensor] = []
        chunks = self.chunks
        # Where dropout is on, the kernels must be those of the second pass, or the same seed would drop
        # other elements; some are chosen by whether a graph is kept.
        with torch.set_grad_enabled(bool(self.model.training)):
            for number, rows in enumerate(chunks):
                with _noise(self.model.device, seed, number):
                    found.append(self.vectors(rows).detach())
        place = np.argsort(np.concatenate(chunks))
        return torch.cat(found)[torch.from_numpy(place).to(found[0].device)]

    def carry_back(self, gradient: Tensor, *, seed: int = 0) -> None:
        """Adds to the encoder's gradients what a gradient (N, E) of its vectors means for its weights."""
        for number, rows in enumerate(self.chunks):
            with _noise(self.model.device, seed, number):
                self.carry_back_chunk(rows, gradient)

    def carry_back_chunk(self, rows: Rows, gradient: Tensor) -> None:
        """The part of `carry_back` that belongs to the texts at `rows`."""
        vectors = self.vectors(rows)
        vectors.backward(gradient[torch.from_numpy(rows).to(gradient.device)].to(vectors.device))  # type: ignore[no-untyped-call]


def centred_table(vectors: Tensor, whitening: Tensor | None = None) -> Tensor:
    """What `encode.TextSpace` makes of vectors (N, E), differentiable through the mean; whitening is a constant."""
    shifted = vectors - vectors.mean(dim=0)
    if whitening is not None:
        shifted = shifted @ whitening
    length = torch.linalg.vector_norm(shifted, dim=1, keepdim=True)
    return torch.where(length > SHORTEST, shifted / length.clamp(min=SHORTEST), shifted.detach() / SHORTEST)


def read_by_towers(vectors: Tensor, whitening: Tensor | None = None, topics: Tensor | None = None) -> Tensor:
    """What `topics.beside` makes of `centred_table` and topics (N, K), differentiable by the vectors (N, E)."""
    table = centred_table(vectors, whitening)
    if topics is None or not topics.shape[1]:
        return table
    joined = torch.cat([table, topics], dim=1)
    read: Tensor = joined / torch.linalg.vector_norm(joined, dim=1, keepdim=True).clamp(min=SHORTEST)
    return read


def vector_gradient(
    vectors: Tensor, losses: LossParts, *, table: Callable[[Tensor], Tensor] = centred_table
) -> tuple[float, Tensor]:
    """The loss, and its gradient (N, E) with respect to all text vectors, through everything that couples them.

    Weights that the loss depends on besides get their own gradients added, as `backward` does.

    Args:
        vectors: (N, E) of length 1, as the encoder gives them.
        losses: see `LossParts`; gets `table(vectors)`.
        table: what the towers read, made of the vectors; the catalog's mean, for one, moves with each of them.
    """
    leaf = vectors.detach().requires_grad_()
    read = table(leaf)
    # Cut off here, so that every part of the loss can free its graph without freeing that of the table.
    cut = read.detach().requires_grad_()
    total = 0.0
    for part in losses(cut):
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
    if cut.grad is None:
        return total, torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(read, leaf, cut.grad)
    return total, gradient


def cached_backward(
    encoder: CatalogEncoder, losses: LossParts, *, seed: int = 0, table: Callable[[Tensor], Tensor] = centred_table
) -> float:
    """`loss.backward()` for a loss over all text vectors: adds the exact gradients, and returns the loss.

    Gradients are added to the encoder's trainable weights and to all others that the loss depends on; it is
    for the caller to clear them and to step.

    Args:
        losses, table: see `vector_gradient`.
        seed: of the encoder's dropout, if it is on; another one for each step.
    """
    loss, gradient = vector_gradient(encoder.table(seed=seed), losses, table=table)
    encoder.carry_back(gradient, seed=seed)
    return loss


@contextmanager
def _noise(device: torch.device, seed: int, chunk: int) -> Iterator[None]:
    """Random numbers that depend on the seed and the chunk alone; the streams outside go on as if not disturbed."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, chunk]).generate_state(1)[0]))
        yield
