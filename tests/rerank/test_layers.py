"""Shallower models are saved, loaded and trained like whole ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rerank.adapters import AdapterConfig, AdapterKind
from rerank.base import RerankRequest
from rerank.decoder import DecoderReranker
from rerank.encoder import EncoderReranker
from rerank.layers import keep_layers
from store.errors import BadInput
from tests.rerank import tiny_bert as bert
from tests.rerank import tiny_llama as llama
from tests.rerank.tiny_bert import WORDS

CONFIGS: dict[str, Any] = {"encoder": bert.CONFIG, "decoder": llama.CONFIG}
REQUEST = RerankRequest(tuple(WORDS[:3]), tuple(WORDS[4:12]))


def shallow(kind: str, folder: Path, layers: int | None, adapter: AdapterConfig | None = None) -> Any:
    module = bert if kind == "encoder" else llama
    changes: dict[str, Any] = {"layers": layers}
    if adapter:
        changes["adapter"] = adapter
    return bert.move(module.untrained(folder, config=module.CONFIG.model_copy(update=changes)))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("deep")
    return {
        "encoder": bert.write_tiny_bert(folder / "bert", layers=5),
        "decoder": llama.write_tiny_llama(folder / "llama", layers=5),
    }


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_the_first_and_the_last_stay_and_the_rest_is_even(
    deep: dict[str, Path], kind: str, count: int, kept: list[int]
) -> None:
    reader = EncoderReranker if kind == "encoder" else DecoderReranker
    whole, few = (reader.read_backbone(deep[kind], CONFIGS[kind]) for _ in range(2))
    keep_layers(few, count)
    before, after = (next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)) for model in (whole, few))
    assert len(after) == few.config.num_hidden_layers == count
    for place, layer in zip(kept, after, strict=True):
        mine, theirs = dict(layer.named_parameters()), dict(before[place].named_parameters())
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    if kind == "decoder":
        assert [layer.self_attn.layer_idx for layer in after] == list(range(count))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_it_is_saved_and_loaded_as_it_is(deep: dict[str, Path], kind: str, tmp_path: Path) -> None:
    made = shallow(kind, deep[kind], 3)
    made.save(tmp_path)
    loaded = type(made).load(tmp_path, model_dir=deep[kind], model_fingerprint=made.base.fingerprint)
    scores = [one.score([REQUEST]).scores[0] for one in (made, loaded, made.merged())]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] == pytest.approx(scores[2], abs=1e-4)
    whole = shallow(kind, deep[kind], None).score([REQUEST]).scores[0]
    assert scores[0] != pytest.approx(whole, abs=1e-3)


def test_packed_and_alone_agree_with_a_prefix_of_virtual_tokens_too(deep: dict[str, Path]) -> None:
    made = shallow("decoder", deep["decoder"], 3, AdapterConfig(kind=AdapterKind.PREFIX, virtual_tokens=2))
    together = made.score([REQUEST]).scores[0]
    alone = [made.score([RerankRequest(REQUEST.history, (one,))]).scores[0][0] for one in REQUEST.candidates]
    assert together == pytest.approx(alone, abs=1e-4)


def test_more_layers_than_there_are_is_refused(deep: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="keeps 6 layers, but the model has 5"):
        shallow("encoder", deep["encoder"], 6)
    with pytest.raises(BadInput, match="has 5"):
        keep_layers(llama.untrained(deep["decoder"]).backbone, 9)
