"""Exports score as the reranker that they were made of, in libraries that know nothing of ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForCausalLM

from rerank import export
from rerank.adapters import AdapterConfig, AdapterKind
from rerank.card import CARD_FILE, HEAD_FILE
from rerank.export import Shape, export_reranker
from rerank.packed import PackedReranker
from rerank.prompt import decoder_wording
from store.errors import BadInput, Mismatch
from tests.rerank import tiny_bert as bert
from tests.rerank import tiny_llama as llama
from tests.rerank.tiny_bert import WORDS

HISTORIES = ["", WORDS[3], f"{WORDS[0]} {WORDS[1]}\n{WORDS[2]}"]
PAIRS = [(history, f"{WORDS[place]} {WORDS[place + 9]}") for place in range(5) for history in HISTORIES]


def trained(kind: str, tiny_bert: Path, tiny_llama: Path) -> PackedReranker:
    return bert.shaken(tiny_bert) if kind == "encoder" else llama.shaken(tiny_llama)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_predict_is_the_score_of_each_pair_alone(kind: str, tiny_bert: Path, tiny_llama: Path) -> None:
    reranker = trained(kind, tiny_bert, tiny_llama)
    together = reranker.predict(PAIRS)
    alone = np.concatenate([reranker.predict([pair]) for pair in PAIRS])
    assert together.dtype == np.float32
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together.round(4).tolist())) > len(PAIRS) // 2
    assert reranker.predict([]).shape == (0,)


def test_predict_takes_what_cross_encoders_take(tiny_llama: Path) -> None:
    reranker = llama.shaken(tiny_llama)
    wanted = reranker.predict(PAIRS)
    one = reranker.predict(PAIRS[4])
    assert isinstance(one, np.float32)
    assert one == pytest.approx(wanted[4], abs=1e-5)
    assert reranker.predict(list(PAIRS[4]), convert_to_tensor=True).shape == ()
    assert reranker.predict([list(pair) for pair in PAIRS[:2]]) == pytest.approx(wanted[:2], abs=1e-5)
    tensor = reranker.predict(PAIRS, batch_size=2, show_progress_bar=True, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(wanted, abs=1e-5)
    apart = reranker.predict(PAIRS, convert_to_numpy=False)
    assert [one.item() for one in apart] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert all(isinstance(one, torch.Tensor) for one in apart)
    bounded = reranker.predict(PAIRS, activation_fn=torch.nn.Sigmoid())
    assert bounded == pytest.approx(1 / (1 + np.exp(-wanted)), abs=1e-5)


def test_cross_encoder_loads_and_scores_equally(tiny_llama: Path, tmp_path: Path) -> None:
    reranker = llama.shaken(tiny_llama)
    export_reranker(reranker, tmp_path / "out", Shape.CROSS_ENCODER)
    loaded = CrossEncoder(str(tmp_path / "out"), model_kwargs={"dtype": torch.float32}, device="cpu")
    scores = loaded.predict(PAIRS, show_progress_bar=False)
    assert reranker.predict(PAIRS) == pytest.approx(scores, abs=1e-4)
    assert not (tmp_path / "out" / "model").exists()


def test_the_template_writes_the_very_prompt(tiny_llama: Path) -> None:
    reranker = llama.untrained(tiny_llama)
    tokenizer = reranker.prompter.tokenizer
    tokenizer.chat_template = export.chat_template(tokenizer)
    messages = [{"role": "query", "content": "ab  cd\nef"}, {"role": "document", "content": "\ngh\n"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith(tokenizer.bos_token)
    assert text.endswith("- gh\nAnswer:")
    assert "\n- ab cd\n- ef\nWould" in text
    assert decoder_wording(tokenizer).start[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_merged_model_needs_no_adapter(kind: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    reranker = trained(kind, tiny_bert, tiny_llama)
    export_reranker(reranker, tmp_path, Shape.MERGED)
    card = json.loads((tmp_path / CARD_FILE).read_text())
    assert card["kind"] == kind
    assert (tmp_path / HEAD_FILE).exists()
    assert not list(tmp_path.glob("adapter*"))
    plain = AutoModel if kind == "encoder" else AutoModelForCausalLM
    weights = dict(plain.from_pretrained(str(tmp_path)).named_parameters())
    wanted = dict(reranker.merged().backbone.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())


def test_an_export_that_scores_otherwise_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = export.yes_and_no
    monkeypatch.setattr(export, "yes_and_no", lambda tokenizer: swapped(tokenizer)[::-1])
    with pytest.raises(Mismatch, match="scores differently"):
        export_reranker(llama.shaken(tiny_llama), tmp_path, Shape.CROSS_ENCODER)


def test_what_cannot_be_exported_says_why(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no head like that"):
        export_reranker(bert.untrained(tiny_bert), tmp_path, Shape.CROSS_ENCODER)
    config = bert.CONFIG.model_copy(update={"adapter": AdapterConfig(kind=AdapterKind.BOTTLENECK)})
    with pytest.raises(BadInput, match="cannot be added into the weights"):
        export_reranker(bert.untrained(tiny_bert, config=config), tmp_path, Shape.MERGED)
