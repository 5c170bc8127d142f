"""Catalog texts → vectors, by a sentence-transformer, as fast as this machine allows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError

from data.schema import Rows, Scores
from retrieval.unpadded import UnpaddedBert, runs_unpadded
from store.errors import BadInput, CorruptArtifact, FetchFailed
from store.hardware import Precision, computes_bfloat16, device

ENCODE_CHUNK = 4096
"""Texts between two lines of progress."""
UNPADDED_TEXTS = 16
"""Fewer texts than this are read the model's own way."""
LEAST_SPREAD = 0.1
"""Variance added to each direction before whitening, as a share of the mean one."""


class EncoderConfig(BaseModel):
    """The sentence-transformer that reads item texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("minilm-l6", description="an asset's name, a local folder, or hub:owner/name@revision")
    max_tokens: int = Field(64, ge=8, description="tokens read of each item text")
    batch_size: int = Field(64, ge=1, description="texts in one forward pass, where it pads")
    precision: Precision = Field(Precision.AUTO, description="auto takes bfloat16 where the processor is faster in it")


def load_encoder(path: str, config: EncoderConfig, *, revision: str | None = None) -> Any:
    """The SentenceTransformer at a local path (or hub id with revision), cut to `max_tokens`.

    Raises:
        CorruptArtifact: when the folder's files cannot be read.
        FetchFailed: when the hub cannot be reached, or lacks the model.
    """
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if computes_bfloat16(config.precision) else torch.float32
    local = Path(path).exists()
    try:
        encoder = SentenceTransformer(
            path, device=device(), revision=revision, model_kwargs={"dtype": dtype}, local_files_only=local
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if local:
            raise CorruptArtifact(f"the model in {path} cannot be read ({error}): copy or fetch it again") from error
        raise FetchFailed(f"{path}@{revision} cannot be had from the hub ({error}): check name and network") from error
    encoder.max_seq_length = min(config.max_tokens, encoder.max_seq_length or config.max_tokens)
    return encoder


def encode_texts(
    encoder: Any, texts: Sequence[str], config: EncoderConfig, *, progress: Callable[[int, int], None] | None = None
) -> Scores:
    """(n, E) float32 vectors of length 1; texts that stand several times are read once.

    Args:
        progress: called with (texts done, texts in all) from time to time.

    Raises:
        BadInput: when the model gives NaN or a zero vector.
    """
    reading = Reading.of(texts)
    return reading.vectors(
        map(reader(encoder, len(reading.distinct), config), reading.chunks), config, progress=progress
    )


@dataclass(frozen=True)
class Reading:
    """Texts as they are read: each once, in chunks that can be read apart.

    Attributes:
        distinct: the different texts, longest first over the whole list: batches of like length, and no chunk
            that holds all the long ones late.
        place: for each text, its place in `distinct`.
    """

    distinct: Sequence[str]
    place: Rows

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Reading":
        """From texts in any order, some of which may stand several times."""
        distinct, place = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        order = np.argsort([-len(text) for text in distinct], kind="stable")
        return cls([distinct[row] for row in order], np.argsort(order)[place])

    @property
    def chunks(self) -> list[list[str]]:
        """The different texts, ENCODE_CHUNK at a time."""
        return [list(self.distinct[at : at + ENCODE_CHUNK]) for at in range(0, len(self.distinct), ENCODE_CHUNK)]

    def vectors(
        self, parts: Iterable[Scores], config: EncoderConfig, *, progress: Callable[[int, int], None] | None = None
    ) -> Scores:
        """(n, E) float32 of length 1 for every text, from what was read of each chunk; see `encode_texts`."""
        read: list[Scores] = []
        for part in parts:
            read.append(part)
            if progress:
                progress(min(len(read) * ENCODE_CHUNK, len(self.distinct)), len(self.distinct))
        vectors = np.concatenate(read)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            bad = self.distinct[int(np.argmin(np.where(np.isfinite(lengths), lengths, -1)))]
            raise BadInput(
                f"model {config.model!r} gives no usable vector for the text {bad[:80]!r}; choose another model"
            )
        # bfloat16 rounds, so lengths are off by a part in a thousand until they are made 1 again here.
        return np.asarray((vectors / lengths)[self.place], dtype=np.float32)


def centred(vectors: Scores, mean: Scores | None = None) -> Scores:
    """Vectors (n, E) less the catalog's mean direction, of length 1 again; a vector at the mean stays zero."""
    return _unit(vectors - (vectors.mean(axis=0) if mean is None else mean))


def _unit(vectors: npt.NDArray[np.floating]) -> Scores:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), dtype=np.float32)


@dataclass(frozen=True)
class TextSpace:
    """The map from an encoder's vectors to what towers and text columns read, fitted on a catalog.

    New items, histories in words and queries go through the same map.

    Attributes:
        mean: (E,) float32, taken off.
        whitening: (E, E) float32, symmetric, by which what is left is multiplied; None: by nothing.
    """

    mean: Scores
    whitening: Scores | None = None

    @classmethod
    def of(cls, vectors: Scores, *, whiten: bool = False) -> "TextSpace":
        """Of a catalog's vectors (N, E).

        Args:
            whiten: give all directions that the catalog fills about the same spread; those that it hardly fills are
                stretched no further than `LEAST_SPREAD` says, or they would be noise.
        """
        mean = vectors.mean(axis=0)
        if not whiten:
            return cls(mean)
        shifted = (vectors - mean).astype(np.float64)
        # The symmetric root (ZCA) is unique: that of principal directions has signs, which differ between machines.
        spread, directions = np.linalg.eigh(shifted.T @ shifted / len(shifted))
        spread = np.maximum(spread, 0) + LEAST_SPREAD * max(float(spread.mean()), 1e-12)
        return cls(mean, ((directions / np.sqrt(spread)) @ directions.T).astype(np.float32))

    def __call__(self, vectors: Scores) -> Scores:
        """(n, E) float32 of length 1; a vector at the mean stays zero."""
        if self.whitening is None:
            return centred(vectors, self.mean)
        return _unit((vectors - self.mean) @ self.whitening)


def reader(encoder: Any, texts: int, config: EncoderConfig) -> Callable[[list[str]], Scores]:
    """What reads chunks of so many different texts: without padding where the model is a plain BERT, else its way."""
    # For a query or two, fusing the weights would cost more than it saves.
    if texts >= UNPADDED_TEXTS and runs_unpadded(encoder):
        encoder.eval()
        with torch.inference_mode():
            return UnpaddedBert(encoder).encode

    def padded(chunk: list[str]) -> Scores:
        vectors = encoder.encode(chunk, batch_size=config.batch_size, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return padded
