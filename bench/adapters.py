"""What each way to train a reranker takes and gives: python bench/adapters.py; table in docs/adapters.md.

MovieLens-100k, leave one out: lists of 16 from inside the training histories, negatives drawn by popularity, the same
for every kind; 8 lists a step. Each kind runs in a process of its own, with the learning rate that suits it: weights
of the model itself want a tenth. NDCG@10 within 128 lists of group B's validation items, drawn by the same rule.

- trained: parameters that change, the head's among them
- file_mb: what is saved
- peak_gb: memory of the process
- step_ms: median
- ndcg10: before and after

Results: bench/results/adapters.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.record import ROOT, record

FILE = "adapters.json"
OWN_WEIGHTS = ("last_layers", "full")
ENCODER = ("lora", "dora", "adalora", "ia3", "bottleneck", "last_layers", "full")
TABLE = ROOT / "docs" / "adapters.md"
HEADER = """# Ways to train a reranker

One config key, `reranker.encoder.adapter.kind` (`reranker.decoder.adapter.kind`), chooses what is trained in the \
language model. Measured by `python bench/adapters.py` ({note}): MiniLM-L6 with 22.7 million parameters, \
MovieLens-100k, {steps} steps of 8 lists of 16 with easy negatives, two cores; what its docstring says of data and \
lists. One seed: differences of a hundredth mean little.

| kind | trained parameters | saved, MB | memory, GB | a step, ms | NDCG@10 within the list, before → after |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kind", help="measure this one here and print it as JSON")
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(measured(args.kind, args.steps)))
        return
    rows = []
    for kind in ENCODER:
        command = [sys.executable, __file__, "--kind", kind, "--steps", str(args.steps)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        record(FILE, f"adapter_{kind}", found.pop("ndcg10"), steps=args.steps, **found)
        rows.append(kind)
    write_table(args.steps)


def measured(kind: str, steps: int) -> dict[str, Any]:
    """Trains one kind."""
    from data.load import LoadConfig, load_dataset
    from data.split import SplitConfig, group_of_users, make_split
    from rerank.adapters import AdapterConfig, AdapterKind
    from rerank.card import BaseModelName
    from rerank.encoder import EncoderConfig, EncoderReranker
    from rerank.lists import TrainingLists, earlier_positions
    from rerank.train import train_reranker
    from rerank.train_config import RerankTrainConfig
    from store.assets import fetch, local_folder, resolve_model

    folder = fetch("movielens-100k", progress=lambda line: None)
    dataset = load_dataset(folder / "interactions.parquet", folder / "items.parquet", LoadConfig())[0]
    split = make_split(dataset, SplitConfig())
    texts, rng = dataset.catalog.texts, np.random.default_rng(0)
    weights = np.sqrt(np.bincount(split.train.item_rows, minlength=len(texts)) + 1.0)
    lists = earlier_positions(texts, split.train, per_user=4, easy_weights=weights, rng=rng)
    asked = split.validation.take(np.flatnonzero(group_of_users(dataset.users)[split.validation.user_rows]))
    targets = asked.targets.item_rows[asked.targets.offsets[:-1]]
    validation = TrainingLists(texts, asked.histories, targets, np.empty((len(asked), 0), dtype=np.int64), weights)
    model = local_folder(resolve_model("minilm-l6"))
    reranker = EncoderReranker.create(
        model,
        base=BaseModelName("minilm-l6", "bench"),
        config=EncoderConfig(adapter=AdapterConfig(kind=AdapterKind(kind))),
        seed=0,
    )
    rate = 3e-5 if kind in OWN_WEIGHTS else 3e-3 if kind == "ia3" else 3e-4
    config = RerankTrainConfig(
        epochs=1, budget_minutes=60, hard_share_end=0.0, validate_every_steps=10_000, learning_rate=rate
    )
    seen: list[dict[str, Any]] = []
    places = rng.permutation(len(lists))[: 8 * steps]
    figures = train_reranker(
        reranker, lists.take(places), validation=validation, config=config, log=lambda entry: seen.append(dict(entry))
    )
    times = np.diff([entry["elapsed_s"] for entry in seen if entry["event"] == "step"])
    with tempfile.TemporaryDirectory() as saved:
        reranker.save(Path(saved))
        size = sum(path.stat().st_size for path in Path(saved).rglob("*") if path.is_file())
    assert figures.before is not None
    after = [entry["ndcg@10"] for entry in seen if entry["event"] == "validation"][-1]
    return {
        "ndcg10": after,
        "before": round(figures.before.ndcg_10, 5),
        "trained": sum(value.numel() for value in reranker.trainable().values()),
        "file_mb": round(size / 1e6, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "step_ms": round(float(np.median(times)) * 1000),
        "learning_rate": rate,
    }


def write_table(steps: int) -> None:
    """docs/adapters.md from the results."""
    entries = {entry["figure"]: entry for entry in json.loads((ROOT / "bench" / "results" / FILE).read_text())}
    lines = []
    for kind in ENCODER:
        found = entries[f"adapter_{kind}"]
        lines.append(
            f"| `{kind}` | {found['trained']:,} | {found['file_mb']:g} | {found['peak_gb']:.2f} |"
            f" {found['step_ms']:,} | {found['before']:.3f} → {found['value']:.3f} |\n"
        )
    note = f"commit {entries['adapter_lora']['commit']}"
    tail = (
        "\n`prefix` (keys and values of virtual tokens) is for decoders. AdaLoRA's ranks move in the course of a whole"
        " training, whatever its length. Learning rates: 3e-4; 3e-3 for IA3; 3e-5 where the model's own weights are"
        " trained.\n"
    )
    TABLE.write_text(HEADER.format(note=note, steps=steps) + "".join(lines) + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
