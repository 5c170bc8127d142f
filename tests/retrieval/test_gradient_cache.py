from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import nn
from torch.nn import functional as F

from retrieval.encode import EncoderConfig, TextSpace, centred, encode_texts
from retrieval.gradient_cache import CatalogEncoder, _noise, cached_backward, centred_table, vector_gradient
from tests.rerank.tiny_bert import WORDS, write_tiny_bert

N, POSITIONS = 12, 30
TEXTS = [" ".join(WORDS[(7 * row + 3 * step) % 40] for step in range(1 + row % 4)) for row in range(N)]
RNG = np.random.default_rng(0)
CONTEXT = torch.from_numpy(RNG.integers(0, N, POSITIONS))
TARGET = torch.from_numpy(RNG.integers(0, N, POSITIONS))


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    """A sentence-transformer of a few thousand random weights; its dropout is 0.1 where `train()` puts it on."""
    read = Transformer(str(write_tiny_bert(tmp_path)))
    return SentenceTransformer(modules=[read, Pooling(32)], device="cpu").requires_grad_(True)


def towers() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(32, 32)


def position_loss(tower: nn.Module, table: torch.Tensor, chosen: slice) -> torch.Tensor:
    """Full softmax of what follows each item, by one linear map; sharp, so that gradients are not tiny."""
    return F.cross_entropy(8 * tower(table[CONTEXT[chosen]]) @ table.T, TARGET[chosen])


def in_parts(tower: nn.Module, size: int):
    def parts(table):
        for start in range(0, POSITIONS, size):
            chosen = slice(start, min(start + size, POSITIONS))
            yield position_loss(tower, table, chosen) * (chosen.stop - start) / POSITIONS

    return parts


def gradients(*modules: nn.Module) -> torch.Tensor:
    every = [weight.grad.flatten() for module in modules for weight in module.parameters() if weight.grad is not None]
    for module in modules:
        module.zero_grad(set_to_none=True)
    return torch.cat(every)


def plain_gradient(catalog: CatalogEncoder, tower: nn.Module, *, seed: int) -> tuple[float, torch.Tensor]:
    """Everything in one graph: all chunks encoded, centred by their mean, and one loss over all positions."""
    vectors = [torch.zeros(0)] * N
    for number, rows in enumerate(catalog.chunks):
        with _noise(torch.device("cpu"), seed, number):
            for row, vector in zip(rows, catalog.vectors(rows), strict=True):
                vectors[row] = vector
    table = torch.stack(vectors)
    shifted = table - table.mean(dim=0)
    loss = position_loss(tower, shifted / shifted.norm(dim=1, keepdim=True), slice(None))
    loss.backward()
    return loss.item(), gradients(catalog.model, tower)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("chunk_texts", "batch_size"), [(5, 7), (1, 1000), (1000, 13)])
def test_cached_gradients_equal_plain_ones(encoder, dropout, chunk_texts, batch_size):
    encoder.train(dropout)
    catalog, tower = CatalogEncoder(encoder, TEXTS, chunk_texts), towers()
    loss, expected = plain_gradient(catalog, tower, seed=3)
    found_loss = cached_backward(catalog, in_parts(tower, batch_size), seed=3)
    found = gradients(encoder, tower)
    assert found_loss == pytest.approx(loss, abs=1e-5)
    assert len(found) == len(expected)
    assert expected.abs().max() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_mean_is_no_constant(encoder):
    """What the test above would miss if gradients through the mean were small enough to be left out."""
    encoder.eval()
    catalog, tower = CatalogEncoder(encoder, TEXTS, 4), towers()
    _, expected = plain_gradient(catalog, tower, seed=0)
    mean = catalog.table().mean(dim=0)
    cached_backward(catalog, in_parts(tower, 100), table=lambda vectors: F.normalize(vectors - mean, dim=1))
    assert (gradients(encoder, tower) - expected).abs().max() > 1e-3


def test_dropout_differs_between_chunks_and_seeds_and_leaves_other_streams_alone(encoder):
    encoder.train()
    catalog = CatalogEncoder(encoder, ["same words"] * 4, 2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (catalog.table(seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    torch.testing.assert_close(first, again)
    assert (first[0] - first[2]).abs().max() > 1e-3
    assert (first - other).abs().max() > 1e-3
    # With another seed for the second pass the gradient is that of another function.
    tower = towers()
    catalog = CatalogEncoder(encoder, TEXTS, 5)
    _, gradient = vector_gradient(catalog.table(seed=1), in_parts(tower, 100))
    catalog.carry_back(gradient, seed=1)
    right = gradients(encoder)
    catalog.carry_back(gradient, seed=2)
    assert (gradients(encoder) - right).abs().max() > 1e-3


def test_the_table_equals_what_the_catalog_is_encoded_to(encoder):
    encoder.eval()
    found = CatalogEncoder(encoder, TEXTS, 5).table()
    assert not found.requires_grad
    vectors = encode_texts(encoder, TEXTS, EncoderConfig())
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    np.testing.assert_allclose(centred_table(found), centred(vectors), atol=1e-5)
    space = TextSpace.of(vectors, whiten=True)
    np.testing.assert_allclose(centred_table(found, torch.from_numpy(space.whitening)), space(vectors), atol=1e-4)


def test_a_text_at_the_mean_has_a_finite_gradient():
    root = 0.5**0.5
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [root, root], [-root, -root], [0.0, 0.0]])
    loss, gradient = vector_gradient(vectors, lambda table: [(table * torch.arange(14.0).reshape(7, 2)).sum()])
    expected = (centred(vectors.numpy()) * np.arange(14).reshape(7, 2)).sum()
    assert loss == pytest.approx(expected, abs=1e-4)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


def test_one_item_and_a_loss_that_never_reads_the_table():
    loss, gradient = vector_gradient(torch.tensor([[0.6, 0.8]]), lambda table: [table.sum()])
    assert (loss, gradient.tolist()) == (0, [[0, 0]])
    weight = torch.ones(1, requires_grad=True)
    loss, gradient = vector_gradient(torch.eye(3), lambda table: [weight.sum(), 2 * weight.sum()])
    assert (loss, weight.grad.item(), gradient.abs().sum().item()) == (3, 3, 0)


def test_bfloat16_gives_float32_gradients_of_about_the_same_direction(encoder):
    encoder.eval()
    found = []
    for bfloat16 in (False, True):
        tower = towers()
        cached_backward(CatalogEncoder(encoder, TEXTS, 5, bfloat16), in_parts(tower, 100))
        found.append(gradients(encoder))
    assert found[1].dtype == torch.float32
    assert float(F.cosine_similarity(found[0], found[1], dim=0)) > 0.95
    assert not torch.equal(found[0], found[1])
