import numpy as np
import pytest
from scipy.linalg import sqrtm

from retrieval import encode
from retrieval.encode import LEAST_SPREAD, EncoderConfig, TextSpace, centred, encode_texts
from store.errors import BadInput


class Letters:
    """Encodes a text as counts of its letters a to e, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts, *, batch_size, convert_to_numpy, show_progress_bar):
        self.asked += texts
        return np.array([[text.count(letter) for letter in "abcde"] for text in texts], dtype=np.float32)


def test_vectors_stand_in_the_order_of_the_texts_and_have_length_one(monkeypatch):
    monkeypatch.setattr(encode, "ENCODE_CHUNK", 2)
    texts, encoder, told = ["ab", "c", "ab", "aaad", "e", "c"], Letters(), []
    found = encode_texts(encoder, texts, EncoderConfig(), progress=lambda done, of: told.append((done, of)))
    expected = np.array([[text.count(letter) for letter in "abcde"] for text in texts], dtype=float)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert found.dtype == np.float32
    assert sorted(encoder.asked) == ["aaad", "ab", "c", "e"]  # each text once
    assert [len(text) for text in encoder.asked] == [4, 2, 1, 1]  # the longest first
    assert told == [(2, 4), (4, 4)]


def test_a_text_without_a_usable_vector_is_named():
    with pytest.raises(BadInput, match=r"'minilm-l6'.*'xyz'"):
        encode_texts(Letters(), ["ab", "xyz"], EncoderConfig())


def test_a_nan_is_named():
    class Broken(Letters):
        def encode(self, texts, **options):
            found = super().encode(texts, **options)
            found[texts.index("bad")] = np.nan
            return found

    with pytest.raises(BadInput, match="'bad'"):
        encode_texts(Broken(), ["abc", "bad", "e"], EncoderConfig())


def test_centred_vectors_by_hand():
    vectors = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(centred(vectors), [[root, -root], [-root, root], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(centred(vectors[:1], np.array([1, -1], dtype=np.float32)), [[0, 1]], atol=1e-6)


def test_whitened_vectors_are_those_of_the_inverse_root_of_their_covariance():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 4)) @ np.diag([5, 1, 1, 0]) + [9, 0, 0, 1]).astype(np.float32)
    shifted = vectors - vectors.mean(axis=0)
    covariance = shifted.T @ shifted / 500
    stretched = shifted @ np.linalg.inv(sqrtm(covariance + LEAST_SPREAD * np.trace(covariance) / 4 * np.eye(4)).real)
    space = TextSpace.of(vectors, whiten=True)
    expected = stretched / np.linalg.norm(stretched, axis=1, keepdims=True)
    np.testing.assert_allclose(space(vectors), expected, atol=1e-5)
    np.testing.assert_allclose(space(vectors[:3]), expected[:3], atol=1e-5)  # one by one, by the catalog's map
    plain = TextSpace.of(vectors)
    np.testing.assert_array_equal(plain(vectors), centred(vectors))
    spread = [np.var(one(vectors), axis=0) for one in (plain, space)]
    assert spread[0][0] > 5 * spread[0][1]
    assert spread[1][0] < 3 * spread[1][1]
    assert np.isfinite(TextSpace.of(vectors[:1], whiten=True)(vectors[:1])).all()
