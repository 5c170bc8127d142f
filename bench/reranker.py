"""What packing saves and what budgets hold; result in bench/results/reranker.json.

python bench/reranker.py speed [--threads N] [--rounds N]: one committed request, a history of 439 tokens and 50
candidates of 18 (bench/fixtures/rerank.json), in float32:

- packed_speedup_cpu, packed_cached_speedup_cpu: SmolLM2-135M as it stands, each pair through transformers' own SDPA
  with the last position's logits alone, in the best of several batch sizes, over one packed pass; cold, and with the
  history in the prefix cache
- packed_max_difference: the largest difference of the scores of both; the order must be the same
- encoder_speedup_over_crossencoder: MiniLM, CrossEncoder.predict by its defaults over one packed pass, whose scores are
  checked against each pair alone under a mask
- listwise_training_speedup: steps of lists of 16, forward and backward, pairs over packed; MiniLM, SmolLM2 beside it

Both sides alternate; a figure is the median of the rounds, low and high the smallest and largest ratio of a round.

python bench/reranker.py budget [--requests N] [--decoder-requests N]: users of one to twenty items and lists of two to
fifty, drawn from the words of the same request, one after the other through the second stage; a third with a cap on
tokens, a third with one on time, a third with both; MiniLM, and SmolLM2 with its prefix cache for some of them, whose
histories come back:

- budget_token_overrun: the most tokens that went through a model beyond a cap
- budget_ms_p99_over_cap: 99th percentile of the whole call's time over its cap, of all requests with one for which
  anything was read
- ledger_token_error: tokens that the ledger's file holds less those that went through the models

The tokens are counted where they enter a model, at its word embeddings.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from bench.record import ROOT, record
from data.schema import Candidates, Histories
from fusion.linear import LinearFusion, Transform
from recommend.ledger import Ledger, Spent, add_to_ledger
from recommend.second_stage import SecondStage
from rerank.adapters import AdapterConfig
from rerank.base import RerankRequest
from rerank.budget import Cap
from rerank.card import BaseModelName
from rerank.decoder import NO, YES, DecoderConfig, DecoderReranker
from rerank.encoder import EncoderConfig, EncoderReranker
from rerank.fusion import RERANKER, RETRIEVAL
from rerank.packed import PackedReranker
from rerank.packing import Prompt, pack
from rerank.prompt import PromptConfig
from store.assets import local_folder, resolve_model

FILE = "reranker.json"
LIMITS = PromptConfig(max_history_items=20, max_history_tokens=480, max_item_tokens=40, max_candidate_tokens=40)
PAIR_BATCHES = (1, 2, 5, 10, 25, 50)
LIST_SIZE, LISTS = 16, 4
BASE = BaseModelName("bench", "bench")
MILLISECONDS = {"encoder": (5.0, 300.0), "decoder": (100.0, 4000.0)}
"""Kind → lowest and highest cap on time: the decoder takes some ten times as long."""
Side = Callable[[], Any]
Asked = tuple[np.ndarray, float | None, dict[Cap, int]]


def speed(args: argparse.Namespace) -> None:
    """All figures of speed."""
    torch.set_num_threads(args.threads)
    saved = json.loads((ROOT / "bench/fixtures/rerank.json").read_text())
    request = RerankRequest(tuple(saved["history"]), tuple(saved["candidates"]))
    decoder_speed(request, args)
    encoder_speed(request, args)
    training_speed(request, args)


def budget(args: argparse.Namespace) -> None:
    """Budgets and the ledger under many mixed requests."""
    torch.set_num_threads(args.threads)
    saved = json.loads((ROOT / "bench/fixtures/rerank.json").read_text())
    texts = (*saved["history"], *saved["candidates"])
    rng = np.random.default_rng(0)
    overrun, over_cap, fed_in_all, about = 0, [], 0, {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder)
        for name, reranker, count in (
            ("encoder", _encoder(), args.requests - args.decoder_requests),
            ("decoder", _decoder(), args.decoder_requests),
        ):
            merged = reranker.merged()
            merged.calibrate()
            asked = _asked(rng, len(texts), count, milliseconds=MILLISECONDS[name], returning=name == "decoder")
            found = _fed_by(merged, texts, asked, ledger)
            fed_in_all += sum(fed for fed, _, _ in found)
            excess = [fed - caps[Cap.TOKENS] for (_, _, caps), (fed, _, _) in zip(asked, found, strict=True) if caps]
            overrun = max([overrun, *(int(one) for one in excess)])
            ratios = [ms / limit for fed, ms, limit in found if fed and limit is not None]
            over_cap += ratios
            about[name] = {
                "requests": count,
                "read_nothing": sum(fed == 0 for fed, _, _ in found),
                "ms_over_cap": {f"p{at}": round(float(np.percentile(ratios, at)), 3) for at in (50, 90, 99, 100)},
            }
        error = abs(Ledger.read(ledger).total.fed_tokens - fed_in_all)
    shared = {**about, "tokens": fed_in_all, "threads": args.threads}
    record(FILE, "budget_token_overrun", overrun, **shared)
    record(FILE, "budget_ms_p99_over_cap", round(float(np.percentile(over_cap, 99)), 3), **shared)
    record(FILE, "ledger_token_error", error, **shared)


def _asked(
    rng: np.random.Generator, texts: int, count: int, *, milliseconds: tuple[float, float], returning: bool
) -> list[Asked]:
    """History, caps on tokens and time; every other history of a returning user is one of the last four."""
    asked: list[Asked] = []
    for place in range(count):
        history = rng.permutation(texts)[: rng.integers(1, 21)]
        if returning and place % 2:
            history = asked[int(rng.integers(max(0, place - 4), place))][0]
        low, high = np.log(milliseconds)
        ms = float(np.exp(rng.uniform(low, high))) if place % 3 else None
        caps = {Cap.TOKENS: int(np.exp(rng.uniform(np.log(20), np.log(1500))))} if place % 3 != 1 else {}
        asked.append((history, ms, caps))
    return asked


def _fed_by(
    reranker: PackedReranker[Any], texts: tuple[str, ...], asked: list[Asked], ledger: Path
) -> list[tuple[int, float, float | None]]:
    """Tokens that entered the model, milliseconds of the call and its cap, of each request; the ledger is kept."""
    fusion = LinearFusion(
        {RETRIEVAL: Transform.RAW, RERANKER: Transform.RAW},
        {RETRIEVAL: 1.0, RERANKER: 1.0},
        {RETRIEVAL: 1.0, RERANKER: 1.0},
    )
    stage = SecondStage(reranker, fusion, texts)
    rng = np.random.default_rng(1)
    found = []
    with _counting(reranker) as entered:
        for history, ms, caps in asked:
            depth = int(rng.integers(2, 51))
            rows = rng.permutation(len(texts))[None, :depth]
            scores = np.sort(rng.standard_normal((1, depth)).astype(np.float32))[:, ::-1]
            before, started = entered[0], time.perf_counter()
            ranked = stage.rank(
                Candidates(rows, scores), Histories.of([history.tolist()]), depth=depth, limits=caps, max_ms=ms
            )
            took = (time.perf_counter() - started) * 1000
            spent = Spent(
                requests=1,
                reranked=int(ranked.depth > 0),
                candidates=ranked.depth,
                prompt_tokens=int(ranked.prompt_tokens.sum()),
                cached_tokens=int(ranked.cached_tokens.sum()),
                rerank_ms=took,
            )
            add_to_ledger(ledger, spent)
            found.append((entered[0] - before, took, ms))
    return found


@contextmanager
def _counting(reranker: PackedReranker[Any]) -> Iterator[list[int]]:
    """Tokens that have entered the word embeddings since."""
    entered = [0]

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entered[0] += inputs[0].numel()

    handle = reranker.backbone.get_input_embeddings().register_forward_hook(count)
    try:
        yield entered
    finally:
        handle.remove()


def decoder_speed(request: RerankRequest, args: argparse.Namespace) -> None:
    """Packed, cold and cached, against pairs."""
    reranker = _decoder().merged()
    prompt = _prompt(reranker, request)
    found = {"history": len(prompt.prefix), "candidates": {len(candidate) for candidate in prompt.candidates}}
    if found != {"history": 439, "candidates": {18}}:
        raise SystemExit(f"the fixture should have 439 and 18 tokens, found {found}")
    model: Any = AutoModelForCausalLM.from_pretrained(_folder("smollm2-135m-q4_1"), dtype=torch.float32).eval()
    pairs = torch.from_numpy(np.stack([np.concatenate([prompt.prefix, one]) for one in prompt.candidates]))

    def by_pairs(batch: int) -> np.ndarray:
        with torch.inference_mode():
            logits = [model(input_ids=part, logits_to_keep=1).logits[:, -1] for part in torch.split(pairs, batch)]
        return (torch.cat(logits) @ answer).numpy()

    tokenizer = AutoTokenizer.from_pretrained(_folder("smollm2-135m-q4_1"))
    answer = torch.zeros(model.config.vocab_size)
    for word, sign in ((YES, 1), (NO, -1)):
        answer[tokenizer(word)["input_ids"][0]] = sign
    batch = min(PAIR_BATCHES, key=lambda size: _seconds(lambda: by_pairs(size)))

    def packed() -> np.ndarray:
        reranker.forget()
        return reranker.score_prompts([prompt]).scores[0]

    def cached() -> np.ndarray:
        return reranker.score_prompts([prompt]).scores[0]

    packed()
    seconds, scores = _alternate({"pairs": lambda: by_pairs(batch), "packed": packed, "cached": cached}, args.rounds)
    same_order = np.array_equal(np.argsort(-scores["pairs"]), np.argsort(-scores["packed"]))
    maps = [value.numel() for _, value in model.model.layers.named_parameters() if value.dim() == 2]
    macs = sum(maps)
    about = {
        "pair_batch": batch,
        "seconds": {side: round(float(np.median(times)), 3) for side, times in seconds.items()},
        "tokens": {"pairs": int(pairs.numel()), "packed": prompt.tokens, "cached": prompt.tokens - len(prompt.prefix)},
        "gflop_a_second": {
            "pairs": _rate(macs, pairs.numel(), seconds["pairs"]),
            "packed": _rate(macs, prompt.tokens, seconds["packed"]),
        },
        "threads": args.threads,
    }
    _record_ratio("packed_speedup_cpu", seconds["pairs"], seconds["packed"], **about)
    _record_ratio("packed_cached_speedup_cpu", seconds["pairs"], seconds["cached"], **about)
    difference = max(float(np.abs(scores["pairs"] - scores[side]).max()) for side in ("packed", "cached"))
    spread = float(scores["pairs"].std())
    record(FILE, "packed_max_difference", difference, same_order=bool(same_order), score_deviation=round(spread, 4))


def encoder_speed(request: RerankRequest, args: argparse.Namespace) -> None:
    """The packed encoder against CrossEncoder.predict."""
    reranker = _encoder().merged()
    prompt = _prompt(reranker, request)
    rival: Any = CrossEncoder(_folder("minilm-l6"), num_labels=1, device="cpu", max_length=512)
    pairs = [("; ".join(request.history), candidate) for candidate in request.candidates]
    seconds, scores = _alternate(
        {
            "crossencoder": lambda: rival.predict(pairs, show_progress_bar=False),
            "packed": lambda: reranker.score([request]).scores[0],
        },
        args.rounds,
    )
    difference = float(np.abs(scores["packed"] - _one_way(reranker, prompt)).max())
    _record_ratio(
        "encoder_speedup_over_crossencoder",
        seconds["crossencoder"],
        seconds["packed"],
        seconds={side: round(float(np.median(times)), 4) for side, times in seconds.items()},
        max_difference_from_one_way_pairs=difference,
        threads=args.threads,
    )


def training_speed(request: RerankRequest, args: argparse.Namespace) -> None:
    """Forward and backward of the same lists, packed and as pairs."""
    found = {}
    for name, reranker in (("encoder", _encoder()), ("decoder", _decoder())):
        whole = _prompt(reranker, request)
        starts = range(0, (LISTS if name == "encoder" else 1) * 8, 8)
        lists = [Prompt(whole.prefix, whole.ages, whole.candidates[start : start + LIST_SIZE]) for start in starts]
        found[name], _ = _alternate(
            {"pairs": _steps(reranker, lists, packed=False), "packed": _steps(reranker, lists, packed=True)},
            args.rounds if name == "encoder" else 3,
        )
    decoder = float(np.median(found["decoder"]["pairs"]) / np.median(found["decoder"]["packed"]))
    packed = float(np.median(found["encoder"]["packed"]))
    _record_ratio(
        "listwise_training_speedup",
        found["encoder"]["pairs"],
        found["encoder"]["packed"],
        users_a_second=round(LISTS / packed, 3),
        decoder_ratio=round(decoder, 2),
        threads=args.threads,
    )


def _steps(reranker: PackedReranker[Any], lists: list[Prompt], *, packed: bool) -> Side:
    """One list after the other through forward and backward, its first candidate the one taken."""

    def run() -> float:
        total = 0.0
        for prompt in lists:
            for value in reranker.trainable().values():
                value.grad = None
            asked = [prompt] if packed else [Prompt(prompt.prefix, prompt.ages, (one,)) for one in prompt.candidates]
            with reranker.training():
                loss = -reranker.forward(asked).reshape(1, -1).log_softmax(-1)[0, 0]
                torch.autograd.backward(loss)
            total += loss.item()
        return total

    return run


def _one_way(reranker: EncoderReranker, prompt: Prompt) -> np.ndarray:
    """Scores of each pair alone, by transformers' own attention with the candidate masked from the prefix."""
    model: Any = AutoModel.from_pretrained(_folder("minilm-l6"), attn_implementation="sdpa", dtype=torch.float32).eval()
    size, scores = len(prompt.prefix), []
    with torch.inference_mode():
        for candidate in prompt.candidates:
            packed = pack([Prompt(prompt.prefix, prompt.ages, (candidate,))])
            tokens = len(packed.input_ids)
            mask = torch.zeros(1, 1, tokens, tokens)
            mask[..., :size, size:] = torch.finfo(torch.float32).min
            states = model(
                input_ids=packed.input_ids[None], position_ids=packed.position_ids[None], attention_mask=mask
            ).last_hidden_state[0]
            scores.append(float(reranker.head(states, packed)))
    return np.array(scores, dtype=np.float32)


def _alternate(sides: dict[str, Side], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each side in each round and what it gave last; one run of each before does not count."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    given: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for side, run in sides.items():
            started = time.perf_counter()
            given[side] = run()
            if turn:
                seconds[side].append(time.perf_counter() - started)
    return seconds, given


def _seconds(run: Side) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _record_ratio(figure: str, theirs: list[float], ours: list[float], **more: Any) -> None:
    ratios = np.array(theirs) / np.array(ours)
    value = float(np.median(theirs) / np.median(ours))
    record(FILE, figure, round(value, 2), low=round(ratios.min(), 2), high=round(ratios.max(), 2), **more)


def _rate(macs: int, tokens: int, seconds: list[float]) -> int:
    return round(2 * macs * int(tokens) / 1e9 / float(np.median(seconds)))


def _prompt(reranker: PackedReranker[Any], request: RerankRequest) -> Prompt:
    ids = reranker.prompter.tokenize([*request.history, *request.candidates])
    return reranker.prompter.prompt(ids[: len(request.history)], ids[len(request.history) :])


def _decoder() -> DecoderReranker:
    config = DecoderConfig(prompt=LIMITS)
    return DecoderReranker.create(Path(_folder("smollm2-135m-q4_1")), base=BASE, config=config, seed=0)


def _encoder() -> EncoderReranker:
    limits = LIMITS.model_copy(update={"max_history_tokens": 460})
    config = EncoderConfig(prompt=limits, adapter=AdapterConfig())
    return EncoderReranker.create(Path(_folder("minilm-l6")), base=BASE, config=config, seed=0)


def _folder(name: str) -> str:
    return str(local_folder(resolve_model(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    command = what.add_parser("speed", help=speed.__doc__)
    command.set_defaults(measure=speed)
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--rounds", type=int, default=5)
    command = what.add_parser("budget", help=budget.__doc__)
    command.set_defaults(measure=budget)
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--requests", type=int, default=10_000)
    command.add_argument("--decoder-requests", type=int, default=200)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
