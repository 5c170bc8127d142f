"""Wishes in free text, read by the sentence-transformer that read the catalog."""

import threading
from typing import Any

import numpy as np

from data.schema import Scores
from recommend.recommender import Recommender
from retrieval.encode import EncoderConfig, encode_texts
from retrieval.folder import load_own_encoder, read_card
from store.artifacts import Run
from store.errors import BadInput


class WishReader:
    """The encoder of one release; its model is loaded when the first wish comes, or by `warm`.

    Args:
        run: where the release's retriever is.
        retriever: its key.
    """

    def __init__(self, run: Run, retriever: str) -> None:
        self._run, self._retriever = run, retriever
        self._loaded: tuple[Any, EncoderConfig] | None = None
        self._lock = threading.Lock()

    def vector(self, wish: str, recommender: Recommender) -> Scores:
        """(E,) text vector of a wish, centred like the catalog's.

        Raises:
            BadInput: when it is empty, or the catalog's vectors were not made from texts.
        """
        if not wish.strip():
            raise BadInput("the query is empty: write what is wished for")
        if recommender.catalog.vectors is not None:
            raise BadInput(
                "a query needs item vectors made from texts, but those of this run were given in the catalog: "
                "prepare it without --map vector, or ask with a history"
            )
        # One wish at a time: more threads in the model would only slow each other down.
        with self._lock:
            encoder, settings = self._encoder()
            found = encode_texts(encoder, [wish], settings)
        return np.asarray(recommender.text_vector(found)[0])

    def warm(self) -> None:
        """Loads the model and reads one wish, so that the first caller does not wait for it."""
        with self._lock:
            encoder, settings = self._encoder()
            encode_texts(encoder, ["a wish"], settings)

    def _encoder(self) -> tuple[Any, EncoderConfig]:
        """The release's own tuned encoder, or the one that its config names."""
        if self._loaded is None:
            folder = self._run.artifact("retriever", self._retriever)
            settings = read_card(folder).config.encoder
            self._loaded = load_own_encoder(folder, settings), settings
        return self._loaded
