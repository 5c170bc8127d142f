import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, RobertaConfig, RobertaModel

from rerank.base import RerankRequest
from rerank.budget import Cap, Cut
from rerank.encoder import EncoderConfig, EncoderReranker
from rerank.packing import Prompt
from rerank.prompt import PromptConfig
from store.errors import BadInput, CorruptArtifact, Mismatch
from tests.rerank.tiny_bert import BASE, CONFIG, WORDS, shaken, untrained


def some_requests() -> list[RerankRequest]:
    """Histories of 0 to 9 items and 1 to 12 candidates of 1 to 9 words."""
    rng = np.random.default_rng(3)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 10)))

    return [
        RerankRequest(tuple(text() for _ in range(rng.integers(10))), tuple(text() for _ in range(rng.integers(1, 13))))
        for _ in range(8)
    ]


def one_way(merged: EncoderReranker, prompt: Prompt, candidate: np.ndarray) -> float:
    """A pair alone, without any mask of ours: BERT written out layer by layer.

    The prefix is encoded by itself; in each layer the candidate attends to the prefix's and its own keys.
    """
    bert = merged.backbone
    size, heads = len(prompt.prefix), bert.config.num_attention_heads
    ids = torch.from_numpy(np.concatenate([prompt.prefix, candidate]))[None]
    states = bert.embeddings(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None])
    prefix, own = states[:, :size], states[:, size:]
    for layer in bert.encoder.layer:
        prefix, own = attend(layer, prefix, prefix, heads), attend(layer, own, torch.cat([prefix, own], 1), heads)
    rows = torch.cat([prefix, own], dim=1)[0].double()
    decay = torch.sigmoid(merged.head.decay_logit).double()
    item_ages = range(int(prompt.ages.max()) + 1)
    if len(prompt.prefix) == 1:
        history = rows[0]
    else:
        history = sum(decay**age * rows[:size][prompt.ages == age].mean(dim=0) for age in item_ages)
    a, b = (vector / vector.norm() for vector in (history, rows[size:].mean(dim=0)))
    head, root = merged.head, len(a) ** 0.5
    features = torch.cat([b * root, a * root, a * b * root * root]).float()
    correction = head.out(torch.nn.functional.gelu(head.hidden(features)))
    return float(head.log_temperature.exp() * (a @ b) + correction)


def attend(layer: torch.nn.Module, own: torch.Tensor, seen: torch.Tensor, heads: int) -> torch.Tensor:
    projection = layer.attention.self

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (heads, -1)).transpose(1, 2)  # (1, H, T, D / H)

    query, key, value = (
        split(projection.query(own)), split(projection.key(seen)), split(projection.value(seen))
    )  # fmt: skip
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    context = (weights @ value).transpose(1, 2).flatten(2)
    attended = layer.attention.output(context, own)
    return layer.output(layer.intermediate(attended), attended)


@pytest.mark.parametrize("max_batch_tokens", [8192, 64])
def test_packed_scores_equal_each_pair_alone_through_the_one_way_reference(
    tiny_bert: Path, max_batch_tokens: int
) -> None:
    reranker = shaken(tiny_bert, config=CONFIG.model_copy(update={"max_batch_tokens": max_batch_tokens}))
    requests = some_requests()
    found, merged = reranker.score(requests), reranker.merged()
    spread = []
    with torch.inference_mode():
        for request, scores in zip(requests, found.scores, strict=True):
            ids = reranker.prompter.tokenize([*request.history, *request.candidates])
            prompt = reranker.prompter.prompt(ids[: len(request.history)], ids[len(request.history) :])
            alone = [one_way(merged, prompt, candidate) for candidate in prompt.candidates]
            np.testing.assert_allclose(scores, alone, atol=1e-5, rtol=0)
            spread.append(np.std(scores))
    assert np.mean(spread) > 0.1  # the scores do differ, so that equality says something


def test_untrained_scores_are_the_cosine_of_the_plain_encoder(tiny_bert: Path) -> None:
    config = CONFIG.model_copy(update={"start_temperature": 1.0})
    scores = untrained(tiny_bert, config=config).score([RerankRequest((), ("bal den", "fir"))]).scores[0]
    assert (np.abs(scores) <= 1 + 1e-6).all()
    bert = AutoModel.from_pretrained(str(tiny_bert), attn_implementation="sdpa")
    tokenizer = untrained(tiny_bert).prompter
    with torch.inference_mode():
        for text, score in zip(("bal den", "fir"), scores, strict=True):
            candidate = tokenizer.prompt([], tokenizer.tokenize([text])).candidates[0]
            ids = torch.from_numpy(np.concatenate([[2], candidate]))[None]
            mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
            mask[0, 0, 0, 1:] = torch.finfo(torch.float32).min
            states = bert(input_ids=ids, attention_mask=mask).last_hidden_state[0]
            cosine = torch.cosine_similarity(states[0], states[1:].mean(dim=0), dim=0)
            assert score == pytest.approx(cosine.item(), abs=1e-5)


def test_tokens_counted_are_those_of_the_packed_sequences(tiny_bert: Path) -> None:
    request = RerankRequest(("bal den", "fir"), ("gos", "kal len mir"))
    prefix, candidates = 1 + 3 + 2, 2 + 4
    assert untrained(tiny_bert).score([request]).prompt_tokens == [prefix + candidates]
    long = RerankRequest(request.history, ("gos kal len mir",) * 20)  # 5 tokens each
    assert untrained(tiny_bert, config=CONFIG.model_copy(update={"max_batch_tokens": 64})).score(
        [long]
    ).prompt_tokens == [2 * prefix + 20 * 5]


@pytest.mark.parametrize("limit", [40, 69, 70, 71, 100, 106, 112])
def test_a_cap_on_tokens_counts_a_history_that_is_read_twice(tiny_bert: Path, limit: int) -> None:
    short_rows = untrained(tiny_bert, config=CONFIG.model_copy(update={"max_batch_tokens": 64}))
    request = RerankRequest(("bal den", "fir"), ("gos kal len mir",) * 20, limits={Cap.TOKENS: limit})
    found = short_rows.score([request])
    assert limit - 2 * 6 - 5 < found.prompt_tokens[0] <= limit
    assert found.cuts == [(Cut.NONE, Cap.NONE) if limit == 112 else (Cut.DEPTH, Cap.TOKENS)]


def test_of_a_long_history_only_what_fits_is_tokenised(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = untrained(tiny_bert)
    long = RerankRequest(tuple(f"bal {number}" for number in range(5000)), ("gos",))
    tokenize, seen = reranker.prompter.tokenize, []
    monkeypatch.setattr(reranker.prompter, "tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    short = replace(long, history=long.history[-CONFIG.prompt.max_history_items - CONFIG.prompt.history_block_items :])
    assert reranker.prompt_of(long).prefix.tolist() == reranker.prompt_of(short).prefix.tolist()
    assert len(seen) < 40


def test_time_spent_on_tokenizing_counts(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = untrained(tiny_bert)
    for _ in range(8):
        reranker.pace.observe(1000, 1.0)
    request = RerankRequest(("bal den",), ("gos", "kal"), max_ms=100.0)
    assert reranker.score([request]).cuts == [(Cut.NONE, Cap.NONE)]
    tokenize = reranker.prompter.tokenize

    def slowly(texts: list[str]) -> list[np.ndarray]:
        time.sleep(0.15)
        return tokenize(texts)

    monkeypatch.setattr(reranker.prompter, "tokenize", slowly)
    assert reranker.score([request]).cuts == [(Cut.PASSED, Cap.TIME)]


def test_long_candidates_are_cut_and_counted(tiny_bert: Path) -> None:
    found = untrained(tiny_bert).score([RerankRequest((), (" ".join(WORDS[:8]), " ".join(WORDS[:7]), "bal"))])
    assert found.cut_candidates == [1]
    assert found.scores[0][0] == pytest.approx(found.scores[0][1], abs=1e-6)


def test_merged_copy_scores_alike_and_leaves_the_original_trainable(tiny_bert: Path) -> None:
    reranker = shaken(tiny_bert)
    merged = reranker.merged()
    for ours, theirs in zip(reranker.score(some_requests()).scores, merged.score(some_requests()).scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in merged.backbone.named_parameters())
    assert any(".lora_" in name for name in reranker.trainable())
    with pytest.raises(ValueError, match="merged reranker cannot be saved"):
        merged.save(tiny_bert / "never")


def test_only_adapter_and_head_are_trainable_and_the_pooler_is_left_alone(tiny_bert: Path) -> None:
    names = untrained(tiny_bert).trainable()
    assert all(".lora_" in name or name.startswith("head.") for name in names)
    assert not any("pooler" in name for name in names)


def test_saved_scores_are_equal_in_a_fresh_process(tiny_bert: Path, tmp_path: Path) -> None:
    reranker = shaken(tiny_bert)
    reranker.save(tmp_path / "saved")
    requests = some_requests()
    program = """
import json, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from rerank.base import RerankRequest
from rerank.budget import Cap, Cut
from rerank.encoder import EncoderReranker
saved, base, fingerprint = sys.argv[1:]
reranker = EncoderReranker.load(Path(saved), model_dir=Path(base), model_fingerprint=fingerprint)
asked = [RerankRequest(tuple(history), tuple(candidates)) for history, candidates in json.load(sys.stdin)]
print(json.dumps([[float(score) for score in scores] for scores in reranker.score(asked).scores]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved"), str(tiny_bert), BASE.fingerprint],
        input=json.dumps([[request.history, request.candidates] for request in requests]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for ours, theirs in zip(reranker.score(requests).scores, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_saved_folder_names_no_path_and_a_reloaded_reranker_can_be_trained_on(tiny_bert: Path, tmp_path: Path) -> None:
    reranker = shaken(tiny_bert)
    reranker.save(tmp_path / "saved")
    texts = [path.read_text() for path in (tmp_path / "saved").rglob("*") if path.suffix in (".json", ".md")]
    assert texts
    assert not any(str(tiny_bert) in text for text in texts)
    again = EncoderReranker.load(tmp_path / "saved", model_dir=tiny_bert, model_fingerprint=BASE.fingerprint)
    assert set(again.trainable()) == set(reranker.trainable())
    assert again.config == reranker.config
    assert again.base == BASE


def test_another_base_model_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    untrained(tiny_bert).save(tmp_path)
    with pytest.raises(Mismatch, match=r"trained on tiny with fingerprint fingerprint-of-tiny.*has other-model"):
        EncoderReranker.load(tmp_path, model_dir=tiny_bert, model_fingerprint="other-model")


@pytest.mark.parametrize("name", ["reranker.json", "head.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_folder_is_refused(tiny_bert: Path, tmp_path: Path, name: str, damage: str) -> None:
    untrained(tiny_bert).save(tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptArtifact, match="train-reranker"):
        EncoderReranker.load(tmp_path, model_dir=tiny_bert, model_fingerprint=BASE.fingerprint)


def test_a_newer_format_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    untrained(tiny_bert).save(tmp_path)
    card = json.loads((tmp_path / "reranker.json").read_text())
    (tmp_path / "reranker.json").write_text(json.dumps({**card, "format": 3}))
    with pytest.raises(CorruptArtifact, match="format 3, where this version reads 2"):
        EncoderReranker.load(tmp_path, model_dir=tiny_bert, model_fingerprint=BASE.fingerprint)


def test_models_that_cannot_be_packed_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    other = RobertaConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    RobertaModel(other).save_pretrained(str(tmp_path))
    with pytest.raises(BadInput, match=r"type 'roberta'.*one of bert"):
        untrained(tmp_path)
    with pytest.raises(BadInput, match=r"max_candidate_tokens is 260.*has 64"):
        untrained(tiny_bert, config=EncoderConfig(prompt=PromptConfig()))
    (tmp_path / "config.json").write_text(json.dumps(BertConfig().to_dict())[:100])
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        untrained(tmp_path)


def test_seed_decides_the_first_weights_and_leaves_the_global_generator_alone(tiny_bert: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, same, other = (untrained(tiny_bert, seed=seed).trainable() for seed in (4, 4, 5))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_bfloat16_products_give_nearly_the_same_scores(tiny_bert: Path) -> None:
    reranker = shaken(tiny_bert)
    ids = reranker.prompter.tokenize(["bal den", "fir", "gos", "kal"])
    prompt = reranker.prompter.prompt(ids[:2], ids[2:])
    exact = reranker.score_prompts([prompt]).scores[0]
    close = reranker.score_prompts([prompt], autocast=torch.bfloat16).scores[0]
    np.testing.assert_allclose(close, exact, atol=0.1)
    assert close.dtype == np.float32
