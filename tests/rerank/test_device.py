"""Everything that goes through a model is on its device: on a GPU, and on one that PyTorch only reckons with."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rerank import blocks, packed
from rerank.adapters import AdapterKind, RankSchedule
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from rerank.shared_prefix import Row
from rerank.train import train_reranker
from tests.rerank import tiny_bert, tiny_llama
from tests.rerank.test_adapters import adapted, folder
from tests.rerank.test_encoder import some_requests
from tests.rerank.test_train import FAST, partner_rule, quiet
from tests.rerank.tiny_bert import untrained

KINDS = [pytest.param(tiny, id=name) for name, tiny in (("encoder", tiny_bert), ("decoder", tiny_llama))]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@contextmanager
def moved(reranker: PackedReranker[Any]) -> Iterator[torch.device]:
    """Every weight is on a second device, which reckons with shapes alone and refuses tensors of another, as a GPU."""
    there = torch.device("meta")
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in [*reranker.backbone.modules(), *reranker.head.modules()]:
            for name, value in module._parameters.items():
                if value is not None:
                    gone = mode.from_tensor(value.detach()).to(there)
                    module._parameters[name] = torch.nn.Parameter(gone, requires_grad=value.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else mode.from_tensor(value).to(there)
        yield there


def prompts_of(reranker: PackedReranker[Any]) -> list[Any]:
    return [reranker.prompt_of(request) for request in some_requests()]


def test_the_second_device_refuses_tensors_of_the_first(tiny_bert: Path) -> None:
    reranker = untrained(tiny_bert)
    whole = packed.pack(prompts_of(reranker))
    with moved(reranker), pytest.raises(RuntimeError, match="same device"):
        reranker.row_scores(whole, reranker.row_of(whole), autocast=None)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("tiny", KINDS)
@pytest.mark.parametrize("kind", [AdapterKind.LORA, AdapterKind.ADALORA, AdapterKind.BOTTLENECK, AdapterKind.PREFIX])
def test_a_step_mixes_no_devices(
    tiny: Any, kind: AdapterKind, in_blocks: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiny is tiny_bert and kind is AdapterKind.PREFIX:
        pytest.skip("prefix tuning is for decoders")
    monkeypatch.setattr(blocks, "MOST_PADDING", math.inf)
    reranker = tiny.untrained(folder(tiny, request), config=adapted(tiny, kind))
    monkeypatch.setattr(reranker, "row_of", lambda whole: Row(whole.spans, causal=reranker.causal, in_blocks=in_blocks))
    ranks, prompts = RankSchedule(reranker.backbone), prompts_of(reranker)
    with moved(reranker) as there, reranker.training():
        scores = reranker.forward(prompts)
        assert scores.device == there
        loss = scores.clamp(min=-9).log_softmax(-1).sum() + ranks.penalty()
        torch.autograd.backward(loss)
        assert {value.grad.device for value in reranker.trainable().values() if value.grad is not None} == {there}


@pytest.mark.parametrize("tiny", KINDS)
def test_remembered_prefixes_and_grades_mix_no_devices(tiny: Any, request: pytest.FixtureRequest) -> None:
    config = tiny.CONFIG.model_copy(update={"grades": (1.0, 2.0, 5.0)})
    reranker = tiny.untrained(folder(tiny, request), config=config)
    prompts = prompts_of(reranker)
    with moved(reranker) as there:
        assert reranker.grade_logits(prompts).device == there
        if tiny is tiny_llama:
            whole = packed.pack(prompts, device=there)
            row = reranker.row_of(whole, remember=True)
            reranker.row_scores(whole, row, autocast=None)
            known = [row.prefix_states(0), *[None] * 7]
            again = packed.pack(prompts, known, device=there)
            for in_blocks in (False, True):
                row = Row(again.spans, causal=True, in_blocks=in_blocks)
                assert reranker.row_scores(again, row, autocast=None).device == there


def on_the_cpu(tiny: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(packed, "device", lambda: "cpu")
        return tiny.shaken(base)


@pytest.mark.gpu
@pytest.mark.parametrize("tiny", KINDS)
def test_scores_on_a_gpu_are_those_of_the_cpu(
    tiny: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = folder(tiny, request)
    slow, fast = on_the_cpu(tiny, base, monkeypatch), tiny.shaken(base)
    assert (slow.device.type, fast.device.type) == ("cpu", "cuda")
    expected = slow.score(some_requests()).scores
    half = at_precision(fast, Precision.BFLOAT16)
    for _ in range(2):  # the second time from the prefix cache, where there is one
        for ours, close, theirs in zip(
            fast.score(some_requests()).scores, half.score(some_requests()).scores, expected, strict=True
        ):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
            np.testing.assert_allclose(close, theirs, atol=0.1)
    fast.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "device", lambda: "cpu")
        again = type(fast).load(tmp_path, model_dir=base, model_fingerprint=fast.base.fingerprint)
    assert again.device.type == "cpu"
    for ours, theirs in zip(again.score(some_requests()).scores, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    rounded = at_precision(fast, Precision.INT8)
    assert rounded.device.type == "cpu"
    for ours, theirs in zip(rounded.score(some_requests()).scores, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("tiny", KINDS)
def test_a_training_on_a_gpu_is_that_of_the_cpu(
    tiny: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folder(tiny, request)
    losses = [
        train_reranker(
            one, partner_rule(40, seed=0), validation=partner_rule(12, seed=9), config=FAST, log=quiet
        ).losses
        for one in (on_the_cpu(tiny, base, monkeypatch), tiny.shaken(base))
    ]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-2)
