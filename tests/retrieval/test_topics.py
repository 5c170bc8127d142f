"""Topics: what goes together in a catalog's words, kept as vectors, and found again in other texts."""

import json

import numpy as np
import pytest
import torch

from data.schema import Histories, Holdout
from index.faiss_index import FlatIndex
from retrieval.encode import TextSpace
from retrieval.fit import FittedRetriever, fit_retriever
from retrieval.folder import load_retriever, save_retriever
from retrieval.gradient_cache import read_by_towers
from retrieval.retriever import Retriever
from retrieval.topics import Topics, beside
from retrieval.words import Words
from tests.retrieval.toy import catalog, config, text_vectors

KINDS = [["coffee", "espresso", "grinder"], ["novel", "poems", "story"], ["guitar", "drum", "violin"]]
N = 60


def planted() -> list[str]:
    """Two words of one of three kinds, and a name of its own."""
    rng = np.random.default_rng(0)
    return [f"{' '.join(rng.choice(KINDS[row % 3], 2, replace=False))} name{row}" for row in range(N)]


TEXTS = planted()
WORDS = Words.of(TEXTS)


def test_items_of_one_kind_stand_together_though_no_two_texts_are_alike():
    vectors = Topics.of(WORDS, 3).read(WORDS.vectors)
    assert vectors.shape == (N, 3)
    cosine = vectors @ vectors.T
    same = np.equal.outer(np.arange(N) % 3, np.arange(N) % 3)
    assert cosine[same].min() > 0.9
    assert cosine[~same].max() < 0


def test_directions_are_singular_vectors_strongest_first():
    topics = Topics.of(WORDS, 5)
    found = WORDS.vectors[:, topics.places] @ topics.directions.astype(np.float32)
    used = np.unique(WORDS.vectors.indices)
    strengths = np.linalg.svd(WORDS.vectors[:, used].toarray(), compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), strengths, rtol=2e-3)
    products = found.T @ found
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-2)


@pytest.mark.parametrize("count", [3, 200])
def test_a_text_of_the_catalog_is_read_as_it_stands_in_it(count):
    topics = Topics.of(WORDS, count)
    every = topics.read(WORDS.vectors)
    assert every.shape == (N, count)
    np.testing.assert_allclose(topics.read(WORDS.read(TEXTS[:7])), every[:7], atol=1e-6)


def test_a_new_text_stands_with_its_kind():
    topics = Topics.of(WORDS, 3)
    read = topics.read(WORDS.read(["a grinder for espresso", "violin story"]))
    likeness = read @ topics.read(WORDS.vectors).T
    assert likeness[0, 0::3].min() > 0.9
    assert likeness[0, 1::3].max() < 0
    assert np.linalg.norm(read[1]) == pytest.approx(1)
    assert likeness[1, 0::3].max() < likeness[1, 1::3].max()


def test_a_text_without_a_word_that_others_share_has_no_topics():
    words = Words.of([*TEXTS, "unheard"])
    topics = Topics.of(words, 3)
    assert not topics.read(words.vectors)[-1].any()
    assert not topics.read(words.read(["", "unheard of"])).any()


@pytest.mark.parametrize("texts", [["one"], ["same words"] * 5, ["a", "b", "c"], ["x y", "x y"]])
def test_few_or_identical_texts_have_finite_vectors(texts):
    words = Words.of(texts)
    topics = Topics.of(words, 8)
    vectors = topics.read(words.vectors)
    assert vectors.shape == (len(texts), 8)
    assert np.isfinite(vectors).all()
    assert np.isfinite(topics.read(words.read(["same x", ""]))).all()


def test_they_are_found_alike_twice_and_kept_without_a_change(tmp_path):
    topics = Topics.of(WORDS, 4)
    np.testing.assert_array_equal(Topics.of(WORDS, 4).directions, topics.directions)
    topics.save(tmp_path)
    np.testing.assert_array_equal(Topics.load(tmp_path).read(WORDS.vectors), topics.read(WORDS.vectors))


def test_towers_read_both_alike_and_the_text_as_it_is_where_there_are_no_topics():
    text, topics = TextSpace.of(text_vectors(N))(text_vectors(N)), Topics.of(WORDS, 3).read(WORDS.vectors)
    both = beside(text, topics)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(both[:, :-3], text / np.sqrt(2), atol=1e-5)
    assert beside(text, Topics.of(WORDS, 0).read(WORDS.vectors)) is text


def test_tuning_sees_what_towers_read():
    vectors, topics = text_vectors(N), Topics.of(WORDS, 3).read(WORDS.vectors)
    read = read_by_towers(torch.from_numpy(vectors), topics=torch.from_numpy(topics))
    np.testing.assert_allclose(read.numpy(), beside(TextSpace.of(vectors)(vectors), topics), atol=1e-5)


# --- what towers make of them

NEXT = ["coffee beans", "blue novel", "old guitar", "garden rose"]
SOLD = [f"{NEXT[row % 4]} name{row}" for row in range(48)]
SAME = np.repeat(text_vectors(1), len(SOLD), axis=0)


def told_by_words_alone(topics: int) -> FittedRetriever:
    """Planted: a kind follows a kind, and only the words tell kinds apart; towers have neither ids nor an encoder."""
    rng, users = np.random.default_rng(0), 120
    kinds = (rng.integers(0, 4, users)[:, None] + np.arange(7)) % 4
    taken = rng.integers(0, len(SOLD) // 4, kinds.shape) * 4 + kinds
    lists = Histories.of(taken[:, :-1].tolist())
    asked = Holdout("validation", np.arange(users), lists, Histories.of(taken[:, -1:].tolist()))
    settings = config(epochs=8).model_copy(update={"topics": topics})
    update = {kind: towers.model_copy(update={"residual_dim": 0}) for kind, towers in settings.towers.items()}
    return fit_retriever(
        lists,
        catalog(SOLD),
        SAME,
        validation=asked,
        config=settings.model_copy(update=update),
        build_index=FlatIndex,
        load_encoder=lambda _: None,
        log=lambda _: None,
    )


def share_of_next_kind(found: Retriever) -> float:
    last = [[row] for row in range(16)]
    rows = found.search(Histories.of(last), 5).item_rows
    return float((rows % 4 == (np.arange(16)[:, None] + 1) % 4).mean())


def test_towers_learn_from_topics_what_neither_ids_nor_the_encoder_tell(tmp_path):
    with_topics = told_by_words_alone(4)
    assert share_of_next_kind(with_topics.retriever) > 0.9
    assert share_of_next_kind(told_by_words_alone(0).retriever) < 0.5
    save_retriever(tmp_path, with_topics, text_vectors="key")
    loaded = load_retriever(tmp_path, texts=SOLD, text_vectors=SAME, index=FlatIndex)
    np.testing.assert_array_equal(loaded.towers.text, with_topics.retriever.towers.text)


def test_a_card_of_before_there_were_topics_can_still_be_served(tmp_path):
    found = told_by_words_alone(0)
    save_retriever(tmp_path, found, text_vectors="key")
    card = json.loads((tmp_path / "retriever.json").read_text())
    del card["config"]["topics"]
    (tmp_path / "retriever.json").write_text(json.dumps(card))
    loaded = load_retriever(tmp_path, texts=SOLD, text_vectors=SAME, index=FlatIndex)
    assert loaded.config.topics == 0
    np.testing.assert_array_equal(loaded.item_vectors, found.retriever.item_vectors)
