"""The real MiniLM, where it has been fetched."""

from pathlib import Path

import numpy as np
import pytest

from rerank.base import RerankRequest
from rerank.card import BaseModelName
from rerank.encoder import EncoderConfig, EncoderReranker
from store.assets import resolve_model
from store.errors import MissingStep

HISTORY = (
    "Star Wars (1977) | Action, Adventure, Sci-Fi",
    "Empire Strikes Back, The (1980) | Action, Adventure, Sci-Fi",
    "Alien (1979) | Action, Horror, Sci-Fi",
)
CANDIDATES = (
    "Return of the Jedi (1983) | Action, Adventure, Sci-Fi",
    "Sense and Sensibility (1995) | Drama, Romance",
    "Aristocats, The (1970) | Animation, Children's",
    "Hoop Dreams (1994) | Documentary",
)


@pytest.mark.slow
def test_untrained_minilm_prefers_more_of_the_same_and_packs_exactly() -> None:
    try:
        source = resolve_model("minilm-l6")
    except MissingStep as missing:
        pytest.skip(str(missing))
    base = BaseModelName("minilm-l6", source.fingerprint)
    reranker = EncoderReranker.create(Path(source.path_or_id), base=base, config=EncoderConfig(), seed=0)
    scores = reranker.score([RerankRequest(HISTORY, CANDIDATES)]).scores[0]
    assert scores.argmax() == 0
    alone = [reranker.score([RerankRequest(HISTORY, (text,))]).scores[0][0] for text in CANDIDATES]
    np.testing.assert_allclose(scores, alone, atol=1e-5, rtol=0)
