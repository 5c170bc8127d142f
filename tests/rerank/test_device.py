"""Everything that goes through a model is on its device: on a GPU, and on one that PyTorch only reckons with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rerank import packed
from rerank.adapters import AdapterKind
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from rerank.train import train_reranker
from tests.rerank import tiny_bert, tiny_llama
from tests.rerank.test_adapters import adapted, folder
from tests.rerank.test_encoder import some_requests
from tests.rerank.test_train import FAST, partner_rule, quiet
from tests.rerank.tiny_bert import untrained

KINDS = [pytest.param(tiny, id=name) for name, tiny in (("encoder", tiny_bert), ("decoder", tiny_llama))]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@contextmanager
def moved_to_a_reckoned_gpu(reranker: PackedReranker[Any]) -> Iterator[None]:
    """Every weight is on "cuda", without values; an operation on two devices is refused, as by a real one."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for part in (reranker.backbone, reranker.head):
            for module in part.modules():
                for kept in (module._parameters, module._buffers):
                    for name, value in kept.items():
                        if value is None:
                            continue
                        there = mode.from_tensor(value.detach()).to("cuda")
                        kept[name] = (
                            torch.nn.Parameter(there, requires_grad=value.requires_grad)
                            if isinstance(value, torch.nn.Parameter)
                            else there
                        )
        yield


def prompts_of(reranker: PackedReranker[Any]) -> list[Any]:
    return [reranker.prompt_of(request) for request in some_requests()]


@pytest.mark.parametrize("tiny", KINDS)
@pytest.mark.parametrize("kind", [AdapterKind.LORA, AdapterKind.ADALORA, AdapterKind.BOTTLENECK, AdapterKind.PREFIX])
def test_a_step_mixes_no_devices(tiny: Any, kind: AdapterKind, request: pytest.FixtureRequest) -> None:
    if tiny is tiny_bert and kind is AdapterKind.PREFIX:
        pytest.skip("prefix tuning is for decoders")
    reranker = tiny.untrained(folder(tiny, request), config=adapted(tiny, kind))
    prompts = prompts_of(reranker)
    with moved_to_a_reckoned_gpu(reranker), reranker.training():
        scores = reranker.forward(prompts)
        assert scores.device.type == "cuda"
        torch.autograd.backward(scores[torch.isfinite(scores)].sum())
        devices = {value.grad.device.type for value in reranker.trainable().values() if value.grad is not None}
    assert devices == {"cuda"}


@pytest.mark.parametrize("tiny", KINDS)
def test_remembered_prefixes_and_grades_mix_no_devices(tiny: Any, request: pytest.FixtureRequest) -> None:
    config = tiny.CONFIG.model_copy(update={"grades": (1.0, 2.0, 5.0)})
    reranker = tiny.untrained(folder(tiny, request), config=config)
    prompts = prompts_of(reranker)
    with moved_to_a_reckoned_gpu(reranker):
        assert reranker.grade_logits(prompts).device.type == "cuda"
        if tiny is tiny_llama:
            whole = packed.pack(prompts, device=reranker.device)
            row = reranker.row_of(whole, remember=True)
            reranker.row_scores(whole, row, autocast=None)
            again = packed.pack(prompts, [row.prefix_states(0), *[None] * 7], device=reranker.device)
            assert reranker.row_scores(again, reranker.row_of(again), autocast=None).device.type == "cuda"


def test_a_row_is_read_in_blocks_on_a_gpu_alone(tiny_bert: Path) -> None:
    reranker = untrained(tiny_bert)
    prompts = prompts_of(reranker)
    assert not reranker.row_of(packed.pack(prompts)).in_blocks
    with moved_to_a_reckoned_gpu(reranker):
        assert reranker.row_of(packed.pack(prompts, device=reranker.device)).in_blocks


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
