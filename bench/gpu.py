"""What one GPU does; result in bench/results/gpu.json. Without one, a line says so and nothing is measured.

python bench/gpu.py rerank [--model FOLDER] [--requests N] [--batch-tokens N] [--rounds N]: SmolLM2-135M with an
adapter, merged, in bfloat16; the committed request (bench/fixtures/rerank.json: a history of 439 tokens and 50
candidates of 18) with its parts in another order for each user, no history remembered:

- h200_items_per_second: candidates scored a second; tokens a second, pairs through transformers' own SDPA and the time
  of one request alone beside it
- h200_mfu: 2 × weights of the layers × tokens, over that time, as a share of the 790 TFLOP/s that an H200 reaches in
  bfloat16; attention's own products are not counted

python bench/gpu.py search [--vectors N] [--dimension D] [--batch N] [--rounds N]: exact search for 100 neighbours among
a million drawn vectors, in float32:

- h200_exact_qps_1m: queries a second of the flat index's replica on the GPU
- h200_over_torch: its rate over that of PyTorch's matrix product and topk, both sides alternating

Before each, what the GPU finds is compared with the CPU in float32. On another card the figures bear its name.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from bench.record import ROOT, record

FILE = "gpu.json"
REACHED_FLOPS = 790e12
"""Of an H200 in bfloat16, in long products."""
CHECKED = 64
"""Queries whose neighbours are compared with the CPU's."""
PAIR_BATCHES = (32, 128, 512)
K = 100
Side = Callable[[], Any]


def rerank(args: argparse.Namespace) -> None:
    """Throughput of the packed decoder, and the share of the card's arithmetic that it uses."""
    from transformers import AutoModelForCausalLM

    from rerank.adapters import plain
    from rerank.card import BaseModelName
    from rerank.decoder import DecoderConfig, DecoderReranker
    from rerank.precision import Precision, at_precision
    from rerank.prompt import PromptConfig
    from store.assets import local_folder, resolve_model

    folder = args.model or local_folder(resolve_model("smollm2-135m-q4_1"))
    limits = PromptConfig(max_history_items=20, max_history_tokens=480, max_item_tokens=40, max_candidate_tokens=40)
    config = DecoderConfig(prompt=limits, prefix_cache_mb=0, max_batch_tokens=args.batch_tokens)
    base = BaseModelName("bench", "bench")
    exact = DecoderReranker.create(Path(folder), base=base, config=config, seed=0)
    reranker = at_precision(exact, Precision.BFLOAT16)
    asked = _requests(args.requests)
    prompts = [reranker.prompt_of(one) for one in asked]

    found = exact.score(asked[:2]).scores
    close = reranker.score(asked[:2]).scores
    exact.backbone, exact.head = exact.backbone.cpu(), exact.head.cpu()
    expected = exact.score(asked[:2]).scores
    differences = {
        "float32": max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)),
        "bfloat16": max(float(np.abs(a - b).max()) for a, b in zip(close, expected, strict=True)),
    }
    print(f"largest difference from the CPU in float32: {differences}")

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).cuda().eval()
    one = prompts[0]
    pairs = torch.from_numpy(np.stack([np.concatenate([one.prefix, ids]) for ids in one.candidates])).cuda()

    def pairs_per_second(batch: int) -> int:
        rows = pairs.repeat(-(-batch // len(pairs)), 1)[:batch]

        def run() -> torch.Tensor:
            with torch.inference_mode():
                states: torch.Tensor = model.model(input_ids=rows).last_hidden_state[:, -1].float().cpu()
            return states

        return round(batch / float(np.median(_seconds(run, args.rounds))))

    alone = _seconds(lambda: reranker.score(asked[:1]), 10 * args.rounds)
    seconds = _seconds(lambda: reranker.score_prompts(prompts, autocast=torch.bfloat16), args.rounds)
    items, tokens = sum(len(prompt.candidates) for prompt in prompts), sum(prompt.tokens for prompt in prompts)
    weights = sum(value.numel() for value in plain(reranker.backbone).model.layers.parameters() if value.dim() == 2)
    about = {
        "tokens_per_second": round(tokens / float(np.median(seconds))),
        "pairs_per_second": {str(size): pairs_per_second(size) for size in PAIR_BATCHES},
        "one_request_ms": {f"p{at}": round(float(np.percentile(alone, at)) * 1000, 2) for at in (50, 99)},
        "difference_from_cpu": differences,
        "requests": len(prompts),
        "batch_tokens": args.batch_tokens,
        "weights_of_layers": weights,
    }
    _record("items_per_second", items / np.array(seconds), digits=1, **about)
    _record("mfu", 2 * weights * tokens / np.array(seconds) / REACHED_FLOPS, digits=4, **about)


def search(args: argparse.Namespace) -> None:
    """Exact search on the card, by FAISS and by PyTorch."""
    from index.faiss_index import FlatIndex
    from index.gpu import GpuIndex, gpus

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((args.vectors, args.dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = rng.standard_normal((args.batch, args.dimension), dtype=np.float32)
    there = torch.from_numpy(vectors).cuda()

    def by_torch() -> np.ndarray:
        products = torch.from_numpy(queries).cuda() @ there.T
        return products.topk(K).indices.cpu().numpy()

    checked = queries[:CHECKED] @ vectors.T
    expected = np.argsort(-checked, axis=1)[:, :K]
    sides: dict[str, Side] = {"torch": by_torch}
    if gpus():
        index = GpuIndex(FlatIndex(vectors))
        sides["ours"] = lambda: index.search(queries, K)[1]
    else:
        print("this build of FAISS finds no GPU (pip install -r requirements-gpu.lock): PyTorch's product alone")
    recall = {side: _shared(run()[:CHECKED], expected) for side, run in sides.items()}
    print(f"share of the CPU's {K} neighbours: {recall}")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, run in sides.items():
            seconds[side] += _seconds(run, 1, warm=0)
    rates = {side: args.batch / np.array(times) for side, times in seconds.items()}
    about = {
        "queries_per_second": {side: round(float(np.median(rate))) for side, rate in rates.items()},
        "recall_against_cpu": recall,
        "vectors": args.vectors,
        "dimension": args.dimension,
        "batch": args.batch,
    }
    _record("exact_qps_1m", rates.get("ours", rates["torch"]), digits=1, by="ours" if gpus() else "torch", **about)
    if gpus():
        _record("over_torch", rates["ours"] / rates["torch"], digits=3, **about)


def _requests(count: int) -> list[Any]:
    """The committed request, its history and its candidates in another order for each user."""
    from rerank.base import RerankRequest

    saved = json.loads((ROOT / "bench/fixtures/rerank.json").read_text())
    rng = np.random.default_rng(0)
    return [
        RerankRequest(
            tuple(rng.permutation(saved["history"]).tolist()), tuple(rng.permutation(saved["candidates"]).tolist())
        )
        for _ in range(count)
    ]


def _seconds(run: Side, rounds: int, *, warm: int = 2) -> list[float]:
    """Of each round, after some that do not count; each ends with its result on the CPU."""
    seconds = []
    for turn in range(warm + rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if turn >= warm:
            seconds.append(time.perf_counter() - started)
    return seconds


def _shared(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, expected, strict=True)]))


def _record(figure: str, values: np.ndarray, *, digits: int, **more: Any) -> None:
    device = torch.cuda.get_device_name()
    card = next((word for word in device.lower().split() if any(map(str.isdigit, word))), "gpu")
    low, high = round(float(values.min()), digits), round(float(values.max()), digits)
    value = round(float(np.median(values)), digits)
    record(FILE, f"{card}_{figure}", value, low=low, high=high, **more, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    command = what.add_parser("rerank", help=rerank.__doc__)
    command.set_defaults(measure=rerank)
    command.add_argument("--model", type=Path)
    command.add_argument("--requests", type=int, default=200)
    command.add_argument("--batch-tokens", type=int, default=32_768)
    command.add_argument("--rounds", type=int, default=7)
    command = what.add_parser("search", help=search.__doc__)
    command.set_defaults(measure=search)
    command.add_argument("--vectors", type=int, default=1_000_000)
    command.add_argument("--dimension", type=int, default=384)
    command.add_argument("--batch", type=int, default=1024)
    command.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that PyTorch finds here: nothing was measured")
        return
    args.measure(args)


if __name__ == "__main__":
    main()
