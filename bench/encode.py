"""encode_speedup_cpu: encoding a catalog's texts with MiniLM-L6, against SentenceTransformer.encode by its defaults.

python bench/encode.py [--data DIR] [--threads N] [--texts N] [--rounds N]; result in bench/results/retrieval.json.

Both sides read the same distinct texts, cut at the same number of tokens, in alternating rounds of one process; the
default loads float32 and takes 32 texts a batch, ours is retrieval/encode.py by its default precision. Loading a
model is not timed, tokenizing and fusing weights are. Beside the ratio stands the floor: the operations of the
model's matrix products over what a lone product reaches on this machine in the same run.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F

from bench.record import record
from data.text import item_texts
from retrieval.encode import EncoderConfig, encode_texts, load_encoder
from store.assets import fetched, resolve_model

FILE = "retrieval.json"
WARM_UP_TEXTS = 64
PRODUCT_TOKENS = 512
PRODUCT_TIMES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet; the movielens-100k asset without it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--texts", type=int, help="read so many texts, drawn evenly from the catalog; all without it")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = distinct_texts(args.data or fetched("movielens-100k"), args.texts)
    path = resolve_model("minilm-l6").path_or_id
    default: Any = SentenceTransformer(path, device="cpu")
    config = EncoderConfig(max_tokens=default.max_seq_length)
    ours = load_encoder(path, config)
    sides: dict[str, Callable[[list[str]], np.ndarray]] = {
        "default": lambda some: default.encode(some, show_progress_bar=False),
        "ours": lambda some: encode_texts(ours, some, config),
    }
    for read in sides.values():
        read(texts[:WARM_UP_TEXTS])
    seconds, vectors = alternate(sides, texts, args.rounds)
    cosines = (vectors["ours"] * vectors["default"]).sum(axis=1)
    ratios = np.array(seconds["default"]) / np.array(seconds["ours"])
    middle = {side: float(np.median(times)) for side, times in seconds.items()}
    record(
        FILE,
        "encode_speedup_cpu",
        round(middle["default"] / middle["ours"], 2),
        low=round(float(ratios.min()), 2),
        high=round(float(ratios.max()), 2),
        cosine_min=round(float(cosines.min()), 5),
        cosine_mean=round(float(cosines.mean()), 5),
        texts=len(texts),
        rounds=args.rounds,
        threads=args.threads,
        precision=str(ours.dtype).removeprefix("torch."),
        seconds={side: round(time_s, 3) for side, time_s in middle.items()},
        floor=floor(default, texts, middle, ours=ours.dtype),
    )


def distinct_texts(folder: Path, count: int | None) -> list[str]:
    """Each text once, so that nothing is gained by the duplicates that only our side leaves out."""
    texts = sorted(set(item_texts(pl.read_parquet(folder / "items.parquet"), "").drop_nulls()))
    return texts[:: max(1, len(texts) // count)][:count] if count else texts


def alternate(
    sides: dict[str, Callable[[list[str]], np.ndarray]], texts: list[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of each side in each round, and its vectors; who goes first changes from round to round."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    vectors: dict[str, np.ndarray] = {}
    for turn in range(rounds):
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            vectors[side] = sides[side](texts)
            seconds[side].append(time.perf_counter() - started)
    return seconds, vectors


def floor(model: Any, texts: list[str], seconds: dict[str, float], *, ours: torch.dtype) -> dict[str, float]:
    """Operations a token, the speed of lone products, and each side's time over the time that follows from both."""
    tokens = int(model.preprocess(texts)["attention_mask"].sum())
    inner = model[0].model
    a_token = 2 * sum(weight.numel() for name, weight in inner.encoder.named_parameters() if weight.dim() == 2)
    width, wide = inner.config.hidden_size, inner.config.intermediate_size
    told: dict[str, float] = {"tokens": tokens, "mflop_a_token": round(a_token / 1e6, 1)}
    for side, dtype in (("default", torch.float32), ("ours", ours)):
        speed = product_gflops(width, wide, dtype)
        told[f"{side}_product_gflops"] = round(speed)
        told[f"{side}_over_floor"] = round(seconds[side] / (a_token * tokens / 1e9 / speed), 2)
    return told


def product_gflops(width: int, wide: int, dtype: torch.dtype) -> float:
    """Best of many products (PRODUCT_TOKENS, width) @ (width, wide)."""
    left = torch.randn(PRODUCT_TOKENS, width, dtype=dtype)
    right = torch.randn(wide, width, dtype=dtype)
    times = []
    for _ in range(PRODUCT_TIMES):
        started = time.perf_counter()
        F.linear(left, right)
        times.append(time.perf_counter() - started)
    return 2 * PRODUCT_TOKENS * width * wide / min(times) / 1e9


if __name__ == "__main__":
    main()
