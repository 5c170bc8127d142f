"""An encoder of a few lines: the mean of its words' vectors, each drawn by the word itself."""

import hashlib
from collections.abc import Sequence

import numpy as np

from retrieval.encode import EncoderConfig, encode_texts
from retrieval.history_reader import HistoryReader

WIDTH = 10


class BagEncoder:
    """Reads as `SentenceTransformer.encode` does, and counts the texts that it has read."""

    def __init__(self, max_words: int = 64, salt: str = "") -> None:
        self.max_seq_length, self.salt, self.read = max_words, salt, 0

    def encode(self, texts: Sequence[str], **_: object) -> np.ndarray:
        self.read += len(texts)
        return np.array(
            [np.mean([self._word(word) for word in text.split()[: self.max_seq_length]], axis=0) for text in texts],
            dtype=np.float32,
        )

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256((self.salt + word.strip(";")).encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(WIDTH)


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """(n, WIDTH) of length 1."""
    return encode_texts(BagEncoder(), texts, EncoderConfig())


def bag_reader(texts: Sequence[str], *, encoder: BagEncoder | None = None, remembered: int = 1000) -> HistoryReader:
    used = encoder or BagEncoder()
    return HistoryReader(
        texts, vectors_of(texts), load_encoder=lambda _: used, config=EncoderConfig(), remembered=remembered
    )
