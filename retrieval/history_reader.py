"""Histories in words, read by the sentence-transformer: what the text tower knows of a user."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.schema import NO_ITEM, Rows, Scores, Words
from data.text import history_text
from retrieval.encode import EncoderConfig, TextSpace, encode_texts
from store.errors import Mismatch

REMEMBERED = 65_536
"""Histories whose vectors are kept: 50 MB at 384 dimensions."""
LEAST_COSINE = 0.97
"""Of a text's vector with that of the catalog: precisions differ by less, encoders by more."""
LONG_READING = 1_000
"""From so many texts on it is said how far a reading is."""


Told = tuple[bytes, str]
"""A history as it is remembered: its item rows, most recent first, and what is known of who took them."""


class HistoryReader:
    """Turns histories into text vectors; the encoder is loaded when there is something to read for the first time.

    Vectors are rounded to float16, in which they are remembered, so that one that is remembered equals one read anew.

    Args:
        texts: N item texts.
        text_vectors: (N, E) float32 of length 1 by the same encoder.
        space: the map that these go through, and histories, too; None: they are centred.
        load_encoder: gives the sentence-transformer of these settings.
        config: of the encoder, with the tokens that are read of a history.
        remembered: how many vectors are kept.
        say: is told how far a long reading is.
    """

    def __init__(
        self,
        texts: Sequence[str],
        text_vectors: Scores,
        *,
        load_encoder: Callable[[EncoderConfig], Any],
        config: EncoderConfig,
        space: TextSpace | None = None,
        remembered: int = REMEMBERED,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.texts, self.space, self.config = list(texts), space or TextSpace.of(text_vectors), config
        self._load, self._remembered, self._say = load_encoder, remembered, say
        self._encoder: Any | None = None
        self._known: OrderedDict[Told, np.ndarray] = OrderedDict()
        # The shortest text is read whole, however many tokens are.
        row = min(range(len(texts)), key=lambda row: len(texts[row]))
        self._canary = texts[row], text_vectors[row]

    def over(self, retold: Mapping[int, str], *, n_items: int) -> "HistoryReader":
        """The same reader, its encoder too, over a catalog in which the items at some rows are new or told otherwise.

        Args:
            retold: row → text; every row that this reader lacks is among them.
            n_items: rows in all.
        """
        reader = copy.copy(self)
        reader.texts = [*self.texts, *[""] * (n_items - len(self.texts))]
        for row, text in retold.items():
            reader.texts[row] = text
        reader._known = OrderedDict()
        return reader

    def vectors(self, history_rows: Rows, about: Sequence[str] | Words | None = None) -> Scores:
        """(B, E) float32 of length 1, from (B, H) item rows, most recent first, NO_ITEM as padding.

        An empty history has a vector of zeros.

        Args:
            about: what is known of each user, in words, which are read before the history; None: of nobody.

        Raises:
            Mismatch: when the encoder is not the one that read the catalog.
        """
        words = [""] * len(history_rows) if about is None else about
        rows_of = [rows[rows != NO_ITEM].tobytes() for rows in np.asarray(history_rows, dtype=np.int64)]
        keys = [(rows, str(known)) for rows, known in zip(rows_of, words, strict=True)]
        known = {key: self._known[key] for key in keys if key in self._known}
        new = [key for key in dict.fromkeys(keys) if key[0] and key not in known]
        if new:
            known |= dict(zip(new, self._read(new), strict=True))
        found = np.zeros((len(keys), len(self.space.mean)), dtype=np.float32)
        for place, key in enumerate(keys):
            if key[0]:
                found[place] = known[key]
        self._remember(known)
        return found

    def _read(self, keys: Sequence[Told]) -> np.ndarray:
        """(n, E) float16 of histories that are not known."""
        if self._encoder is None:
            self._encoder = self._load(self.config)
            self._check(self._encoder)
        # A history is most recent first, as `history_text` writes it from the oldest on.
        texts = [
            history_text([self.texts[row] for row in np.frombuffer(rows, np.int64)[::-1]], about=about)
            for rows, about in keys
        ]

        def progress(done: int, of: int) -> None:
            if of >= LONG_READING:
                self._say(f"  {done:,} of {of:,} histories read")

        vectors = encode_texts(self._encoder, texts, self.config, progress=progress)
        return self.space(vectors).astype(np.float16)

    def _check(self, encoder: Any) -> None:
        text, expected = self._canary
        cosine = float(encode_texts(encoder, [text], self.config)[0] @ expected)
        if cosine < LEAST_COSINE:
            raise Mismatch(
                f"the text encoder {self.config.model!r} reads {text[:40]!r} otherwise than when the towers were "
                f"trained (cosine {cosine:.3f}, expected 1): put the model back, or run "
                "'python cli.py train-retriever' again"
            )

    def _remember(self, known: dict[Told, np.ndarray]) -> None:
        for key, vector in known.items():
            self._known[key] = vector
            self._known.move_to_end(key)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
