"""Wishes in free text, read by the sentence-transformer that read the catalog."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.schema import Scores
from recommend.recommender import Recommender
from recommend.release import encoder_of
from retrieval.encode import EncoderConfig, encode_texts
from store.artifacts import Release, Run
from store.errors import BadInput, TandemError

_LOG = logging.getLogger(__name__)


class WishReader:
    """The encoder of one release; its model is loaded when the first text comes, or by `warm`.

    Args:
        run: where the release's retriever is.
    """

    def __init__(self, run: Run, release: Release) -> None:
        self._run, self._release = run, release
        self.trouble = ""
        """Why the model could not be loaded; empty where it could, or was not tried."""
        self._loaded: tuple[Any, EncoderConfig] | None = None
        self._lock = threading.Lock()

    def vector(self, wish: str, recommender: Recommender) -> Scores:
        """(E,) text vector of a wish, centred like the catalog's.

        Raises:
            BadInput: when nothing can be seen of it, or the catalog's vectors were not made from texts.
        """
        # Tokenisers drop control characters: of these alone some models would be given nothing to read.
        if not any(one.isprintable() and not one.isspace() for one in wish):
            raise BadInput("the query is empty: write what is wished for")
        if recommender.catalog.vectors is not None:
            raise BadInput(
                "a query needs item vectors made from texts, but those of this run were given in the catalog: "
                "prepare it without --map vector, or ask with a history"
            )
        return np.asarray(recommender.text_vector(self.encode([wish]))[0])

    def encode(self, texts: Sequence[str]) -> Scores:
        """(n, E) text vectors of length 1."""
        # One caller at a time: more threads in the model would only slow each other down.
        with self._lock:
            encoder, settings = self._encoder()
            return np.asarray(encode_texts(encoder, texts, settings))

    def warm(self) -> None:
        """Loads the model and reads one wish, so that the first caller does not wait for it.

        Where that fails all else can be served: `trouble` says why.
        """
        try:
            self.encode(["a wish"])
        except (TandemError, OSError, ValueError, RuntimeError, ImportError) as error:
            self.trouble = str(error)
            _LOG.error("wishes and new items cannot be read: %s", error)

    def _encoder(self) -> tuple[Any, EncoderConfig]:
        if self._loaded is None:
            self._loaded = encoder_of(self._run, self._release)
            self.trouble = ""
        return self._loaded
