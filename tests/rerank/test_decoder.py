import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rerank.base import RerankRequest
from rerank.budget import Cap, Cut
from rerank.decoder import DecoderReranker
from store.errors import BadInput
from tests.rerank.test_encoder import some_requests
from tests.rerank.tiny_llama import BASE, CONFIG, shaken, untrained, write_tiny_llama

NO_CACHE = CONFIG.model_copy(update={"prefix_cache_mb": 0})


def plain_scores(reranker: DecoderReranker, request: RerankRequest) -> list[float]:
    """Each pair alone through the unpacked model with plain attention: logit(yes) − logit(no) at its end."""
    model = reranker.merged().backbone
    model.set_attn_implementation("eager")
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    yes, no = tokenizer.convert_tokens_to_ids([" yes", " no"])
    ids = reranker.prompter.tokenize([*request.history, *request.candidates])
    prompt = reranker.prompter.prompt(ids[: len(request.history)], ids[len(request.history) :])
    found = []
    for candidate in prompt.candidates:
        pair = torch.from_numpy(np.concatenate([prompt.prefix, candidate]))[None]
        with torch.inference_mode():
            logits = model(input_ids=pair).logits[0, -1]
        found.append(float(logits[yes] - logits[no]))
    return found


@pytest.mark.parametrize("config", [CONFIG, NO_CACHE], ids=["cache", "no cache"])
@pytest.mark.parametrize("max_batch_tokens", [8192, 96])
def test_packed_scores_equal_each_pair_alone_through_the_plain_model(tiny_llama, config, max_batch_tokens):
    reranker = shaken(tiny_llama, config=config.model_copy(update={"max_batch_tokens": max_batch_tokens}))
    reranker.backbone.double()
    requests = some_requests()
    for scores, request in zip(reranker.score(requests).scores, requests, strict=True):
        np.testing.assert_allclose(scores, plain_scores(reranker, request), atol=1e-5, rtol=0)
    assert np.mean([np.std(plain_scores(reranker, request)) for request in requests]) > 0.05


def test_a_history_seen_before_is_not_read_again_and_the_scores_stay(tiny_llama):
    reranker = shaken(tiny_llama)
    request = RerankRequest(("bal den", "fir"), ("gos", "kal len mir"))
    first, second = reranker.score([request]), reranker.score([request])
    np.testing.assert_allclose(second.scores[0], first.scores[0], atol=1e-6)
    prefix = len(reranker.prompter.prompt(reranker.prompter.tokenize(request.history), []).prefix)
    assert (first.cached_tokens, second.cached_tokens) == ([0], [prefix])
    assert first.prompt_tokens == second.prompt_tokens
    other = reranker.score([RerankRequest(("bal den", "gos"), request.candidates)])
    assert other.cached_tokens == [0]
    assert len(reranker.cache) == 2


def test_a_history_that_was_planned_as_remembered_is_free_even_where_the_call_itself_displaces_it(tiny_llama):
    """The memory holds one history, and each prompt has a row of its own: reading the first takes away the second's."""
    reranker = shaken(tiny_llama, config=CONFIG.model_copy(update={"max_batch_tokens": 64}))
    known = RerankRequest(("bal den", "fir", "gos kal"), ("gos", "kal len mir", "bal"))
    other = RerankRequest(("fir gos", "den", "len mir"), ("bal", "den len", "gos"))
    first = reranker.score([known])
    reranker.cache.max_bytes = reranker.cache.bytes
    prompt = reranker.prompt_of(known)
    assert prompt.tokens + reranker.prompt_of(other).tokens > 64
    limit = prompt.tokens - len(prompt.prefix)
    found = reranker.score([other, replace(known, limits={Cap.TOKENS: limit})])
    assert found.prompt_tokens[1] - found.cached_tokens[1] == limit
    assert found.cuts[1] == (Cut.NONE, Cap.NONE)
    np.testing.assert_allclose(found.scores[1], first.scores[0], atol=1e-6)
    assert len(reranker.cache) == 1
    assert reranker.remembered(prompt) is None  # it was displaced indeed


def test_without_memory_nothing_is_kept(tiny_llama):
    reranker = shaken(tiny_llama, config=NO_CACHE)
    request = RerankRequest(("bal den",), ("gos",))
    assert [reranker.score([request]).cached_tokens for _ in range(2)] == [[0], [0]]
    assert len(reranker.cache) == 0


def test_training_moves_what_was_kept_out_of_the_way(tiny_llama):
    reranker = untrained(tiny_llama)
    request = RerankRequest(("bal den",), ("gos", "fir"))
    before = reranker.score([request]).scores[0]
    with reranker.training(), torch.no_grad():
        for value in reranker.trainable().values():
            value.add_(0.1)
    after = reranker.score([request])
    assert after.cached_tokens == [0]
    assert np.abs(after.scores[0] - before).max() > 1e-4


def test_only_the_adapter_is_trainable(tiny_llama):
    names = untrained(tiny_llama).trainable()
    assert names
    assert all(".lora_" in name for name in names)


def test_gradients_flow_through_prefix_and_candidates(tiny_llama):
    reranker = shaken(tiny_llama)
    ids = reranker.prompter.tokenize(["bal den", "fir", "gos", "kal"])
    prompt = reranker.prompter.prompt(ids[:2], ids[2:])
    with reranker.training():
        reranker.forward([prompt, prompt])[:, 0].sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in reranker.trainable().values())


def test_saved_scores_are_equal_in_a_fresh_process(tiny_llama, tmp_path):
    reranker = shaken(tiny_llama)
    reranker.save(tmp_path / "saved")
    requests = some_requests()
    program = """
import json, sys
from pathlib import Path
from rerank.base import RerankRequest
from rerank.kinds import load_reranker
saved, base, fingerprint = sys.argv[1:]
reranker = load_reranker(Path(saved), model_dir=Path(base), model_fingerprint=fingerprint)
asked = [RerankRequest(tuple(history), tuple(candidates)) for history, candidates in json.load(sys.stdin)]
print(json.dumps([[float(score) for score in scores] for scores in reranker.score(asked).scores]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved"), str(tiny_llama), BASE.fingerprint],
        input=json.dumps([[request.history, request.candidates] for request in requests]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for ours, theirs in zip(reranker.score(requests).scores, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_adapter_folder_loads_on_the_plain_model_with_peft(tiny_llama, tmp_path):
    from peft import PeftModel

    reranker = shaken(tiny_llama)
    reranker.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_llama))
    merged = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    ours = dict(reranker.merged().backbone.named_parameters())
    for name, value in merged.named_parameters():
        torch.testing.assert_close(value, ours[name])


def test_a_model_that_splits_its_answer_is_refused(tmp_path):
    write_tiny_llama(tmp_path, yes=False)
    with pytest.raises(BadInput, match="no single token for 'yes'"):
        untrained(tmp_path)
