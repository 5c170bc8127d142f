"""What torch.compile takes and gives on the packed encoder; result in bench/results/reranker.json.

python bench/compile.py [--rounds N] [--threads N]: MiniLM, merged, in float32, shapes dynamic; attention over a shared
prefix, whose work follows from where each prompt lies, is left as it stands, everything around it is compiled.

- torch_compile_speedup: the committed request (439 tokens of history, 50 candidates of 18) by the plain model over the
  compiled one, both sides alternating, the median of the rounds
- torch_compile_seconds: until the compiled model has answered requests of several lengths for the first time

Beside them: the ratio for short requests, and how far scores move.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from transformers import AttentionInterface

from bench.record import ROOT, record
from rerank.base import RerankRequest
from rerank.card import BaseModelName
from rerank.encoder import EncoderConfig, EncoderReranker
from rerank.prompt import PromptConfig
from rerank.shared_prefix import NAME, attention
from store.assets import local_folder, resolve_model

FILE = "reranker.json"
LIMITS = PromptConfig(max_history_items=20, max_history_tokens=460, max_item_tokens=40, max_candidate_tokens=40)
SIZES = {"short": (4, 10), "middle": (10, 20), "whole": (20, 50)}
"""Name → items of the history and candidates that are read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    saved = json.loads((ROOT / "bench/fixtures/rerank.json").read_text())
    requests = {
        name: RerankRequest(tuple(saved["history"][-known:]), tuple(saved["candidates"][:count]))
        for name, (known, count) in SIZES.items()
    }
    plain, compiled = _reranker(), _reranker()
    compiled.backbone = _compiled(compiled.backbone)
    started = time.perf_counter()
    moved = max(
        float(np.abs(compiled.score([one]).scores[0] - plain.score([one]).scores[0]).max()) for one in requests.values()
    )
    seconds = time.perf_counter() - started
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    ratios = {name: _ratios(plain, compiled, request, args.rounds) for name, request in requests.items()}
    about = {
        "seconds": round(seconds, 1),
        "graphs": compilations,
        "by_size": {name: round(float(np.median(found)), 3) for name, found in ratios.items()},
        "max_difference": moved,
        "threads": args.threads,
    }
    whole = ratios["whole"]
    value = round(float(np.median(whole)), 3)
    record(FILE, "torch_compile_speedup", value, low=round(min(whole), 3), high=round(max(whole), 3), **about)
    record(FILE, "torch_compile_seconds", about.pop("seconds"), **about)


def _reranker() -> EncoderReranker:
    folder = local_folder(resolve_model("minilm-l6"))
    base = BaseModelName("bench", "bench")
    return EncoderReranker.create(folder, base=base, config=EncoderConfig(prompt=LIMITS), seed=0).merged()


def _compiled(backbone: Any) -> Any:
    plain = torch.compiler.disable(attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, plain)
    return torch.compile(backbone, dynamic=True)


def _ratios(plain: EncoderReranker, compiled: EncoderReranker, request: RerankRequest, rounds: int) -> list[float]:
    found = []
    for turn in range(rounds + 1):
        took = []
        for reranker in (plain, compiled):
            started = time.perf_counter()
            reranker.score([request])
            took.append(time.perf_counter() - started)
        if turn:
            found.append(took[0] / took[1])
    return found


if __name__ == "__main__":
    main()
