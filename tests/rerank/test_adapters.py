"""Every kind of adapter: trained, saved, loaded in a fresh process, and scored equal."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rerank.adapters import AdapterKind, RankSchedule
from rerank.base import RerankRequest
from store.errors import BadInput, CorruptArtifact
from tests.rerank import tiny_bert, tiny_llama
from tests.rerank.test_encoder import some_requests

KINDS = [
    pytest.param(tiny, kind, id=f"{name}, {kind}")
    for name, tiny in (("encoder", tiny_bert), ("decoder", tiny_llama))
    for kind in AdapterKind
    if (name, kind) != ("encoder", AdapterKind.PREFIX)
]
DECODER_SCALES = {"scaled_modules": ("k_proj", "v_proj"), "scaled_inner": ("down_proj",)}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def adapted(tiny: ModuleType, kind: AdapterKind, **changes: Any) -> Any:
    """The tiny config with another adapter; smaller layers open than there are."""
    scales = DECODER_SCALES if tiny is tiny_llama else {}
    adapter = tiny.CONFIG.adapter.model_copy(update={"kind": kind, "last_layers": 1, **scales, **changes})
    return tiny.CONFIG.model_copy(update={"adapter": adapter})


def folder(tiny: ModuleType, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("tiny_bert" if tiny is tiny_bert else "tiny_llama")


def trained(reranker: Any, *, steps: int = 12, of: int | None = None) -> Any:
    """Real gradient steps towards the first candidate, the ranks moving along."""
    parameters, ranks = reranker.trainable(), RankSchedule(reranker.backbone)
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3)
    ids = reranker.prompter.tokenize(["bal den", "fir", "gos", "kal"])
    prompt = reranker.prompter.prompt(ids[:2], ids[2:])
    for step in range(steps):
        with reranker.training():
            loss = -reranker.forward([prompt]).log_softmax(-1)[0, 0] + ranks.penalty()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
        ranks.step((step + 1) / (of or steps))
    return reranker


def scores(reranker: Any) -> list[np.ndarray]:
    return reranker.score(some_requests()).scores


@pytest.mark.parametrize(("tiny", "kind"), KINDS)
def test_trained_saved_and_loaded_in_a_fresh_process_it_scores_the_same(tiny, kind, request, tmp_path):
    base = folder(tiny, request)
    fresh = tiny.untrained(base, config=adapted(tiny, kind))
    before = scores(fresh)
    reranker = trained(fresh)
    after = scores(reranker)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-3
    reranker.save(tmp_path / "saved")
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
        [sys.executable, "-c", program, str(tmp_path / "saved"), str(base), tiny.BASE.fingerprint],
        input=json.dumps([[one.history, one.candidates] for one in some_requests()]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for ours, theirs in zip(after, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    for ours, theirs in zip(after, scores(reranker.merged()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=0)


@pytest.mark.parametrize(("tiny", "kind"), KINDS)
def test_it_trains_what_it_says_and_nothing_else(tiny, kind, request):
    base = folder(tiny, request)
    reranker = tiny.untrained(base, config=adapted(tiny, kind))
    names = [name for name in reranker.trainable() if name.startswith("backbone.")]
    marks = {"lora": "lora_", "dora": "lora_", "adalora": "lora_", "ia3": "ia3_", "bottleneck": ".bottleneck."}
    if kind in marks:
        assert all(marks[kind] in name for name in names)
    if kind is AdapterKind.LAST_LAYERS:
        assert all(".1." in name for name in names)
    assert names
    assert not any("pooler" in name for name in names)


def test_ranks_really_move_to_the_budget(tiny_llama):
    """6 ranks a map at first, 4 of them on average in the end, and not the same everywhere."""
    reranker = tiny_llama_with(tiny_llama, rank=4)
    assert {len(values) for values in singular_values(reranker)} == {6}
    # One that is masked is 0, and a map may lose all of its ranks.
    end = [int((values != 0).sum()) for values in singular_values(trained(reranker, steps=60))]
    assert 0 < sum(end) <= 4 * len(end)
    assert len(set(end)) > 1


def test_ranks_that_weights_put_back_use_are_saved(tiny_llama, tmp_path):
    """The weights of an early step come back when the later ones were worse, and more ranks were in use then."""
    import tests.rerank.tiny_llama as tiny

    reranker = trained(tiny_llama_with(tiny_llama, rank=4), steps=5, of=60)
    early = {name: value.detach().clone() for name, value in reranker.trainable().items()}
    trained(reranker, steps=60)
    with torch.no_grad():
        for name, value in reranker.trainable().items():
            value.copy_(early[name])
    in_use = [int((values != 0).sum()) for values in singular_values(reranker)]
    assert max(in_use) > 4
    before = scores(reranker)
    reranker.save(tmp_path)
    again = type(reranker).load(tmp_path, model_dir=tiny_llama, model_fingerprint=tiny.BASE.fingerprint)
    for ours, theirs in zip(scores(again), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def tiny_llama_with(base: Path, *, rank: int) -> Any:
    return tiny_llama.untrained(base, config=adapted(tiny_llama, AdapterKind.ADALORA, rank=rank))


def singular_values(reranker: Any) -> list[torch.Tensor]:
    """Of each update; all of them are 0 before the first step."""
    return [value for name, value in reranker.backbone.named_parameters() if "lora_E" in name]


def test_prefix_tuning_of_an_encoder_is_refused(tiny_bert):
    import tests.rerank.tiny_bert as tiny

    with pytest.raises(BadInput, match="prefix tuning is for decoders"):
        tiny.untrained(tiny_bert, config=adapted(tiny, AdapterKind.PREFIX))


def test_weights_of_another_kind_are_refused(tiny_bert, tmp_path):
    import tests.rerank.tiny_bert as tiny

    tiny.untrained(tiny_bert, config=adapted(tiny, AdapterKind.LAST_LAYERS)).save(tmp_path)
    card = json.loads((tmp_path / "reranker.json").read_text())
    card["config"]["adapter"]["kind"] = "full"
    (tmp_path / "reranker.json").write_text(json.dumps(card))
    with pytest.raises(CorruptArtifact, match="other weights than full has"):
        type(tiny.untrained(tiny_bert)).load(tmp_path, model_dir=tiny_bert, model_fingerprint=tiny.BASE.fingerprint)


def test_virtual_tokens_are_seen_from_the_prefix_cache_too(tiny_llama):
    import tests.rerank.tiny_llama as tiny

    reranker = trained(tiny.untrained(tiny_llama, config=adapted(tiny, AdapterKind.PREFIX)))
    request = RerankRequest(("bal den",), ("gos", "fir"))
    first, second = reranker.score([request]), reranker.score([request])
    assert second.cached_tokens[0] > 0
    np.testing.assert_allclose(first.scores[0], second.scores[0], atol=1e-6)
