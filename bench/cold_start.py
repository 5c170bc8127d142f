"""Items unknown in training: python bench/cold_start.py WHAT --data DIR; results in bench/results/retrieval.json.

- goodbooks: goodbooks_cold_recall20_over_zero_shot
- beauty: beauty_cold_recall20_over_zero_shot

DIR holds interactions.parquet and items.parquet. The job is given a log from which every interaction with a test item
was taken away; its settings are chosen on cold items of validation, then all that is left is learnt from. A user is
asked for the cold items that the user took, knowing the others, once with the cold items as the only candidates and
once with the whole catalog. Zero-shot is the same model on the same texts without training: the mean of the history's
vectors, centred by the catalog's mean or not. `--part validation` stops before the test: it judges group B's cold
items of validation, since group A's taught the network over the sources, and records nothing.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import polars as pl

from baselines.base import batched_candidates, user_item_matrix
from bench.record import ROOT, record
from data.load import LoadConfig, load_interactions, load_items
from data.schema import ITEM_ID, USER_ID, Candidates, Histories, Holdout, Rows, Scores
from data.split import SplitConfig, SplitKind, held_out_items
from data.vocabulary import Vocabulary
from eval.protocol import CatalogStats, Evaluation, evaluate
from eval.significance import paired_bootstrap
from pipeline.run_log import RunLog
from pipeline.train_retriever import base_text_vectors, open_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from retrieval.encode import centred
from retrieval.retriever import USERS_AT_ONCE, Retriever, concatenated

CLI = [sys.executable, "cli.py"]
DEPTH = 100
METRIC = "recall@20"
RETRIEVAL, CENTRED, UNCENTRED = "retrieval", "zero-shot, centred", "zero-shot, not centred"


@dataclass(frozen=True)
class Protocol:
    """What of a data set counts, and which items are cold.

    Attributes:
        min_rating: least rating that is an interaction; None where there are none.
        min_interactions: users with fewer are left out, counted before anything is held out.
        cold_items: of the smallest SHA-256; None: a tenth of the catalog.
    """

    figure: str
    min_rating: float | None
    min_interactions: int
    cold_items: int | None

    @property
    def split(self) -> SplitConfig:
        """The split of the whole data."""
        return SplitConfig(kind=SplitKind.COLD_ITEMS, cold_items=self.cold_items)


PROTOCOLS = {
    "goodbooks": Protocol("goodbooks_cold_recall20_over_zero_shot", 4, 5, 2000),
    "beauty": Protocol("beauty_cold_recall20_over_zero_shot", None, 1, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PROTOCOLS)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of cli.py prepare")
    args = parser.parse_args()
    protocol = PROTOCOLS[args.what]
    final = args.part == "test"
    with tempfile.TemporaryDirectory() as folder:
        truth = _blinded(args.data, Path(folder), protocol)
        ws = _trained(f"runs/cold-{args.what}", args.data, Path(folder), protocol, settings=args.settings, final=final)
    asked = _asked(ws, truth) if final else ws.selectors
    cold = held_out_items(ws.dataset.catalog.vocabulary, protocol.split).asked(args.part)
    retriever = open_retriever(ws, FitKind.FINAL if final else FitKind.EVALUATION)
    learnt = CatalogStats.of(ws.dataset.interactions if final else ws.split.train, len(ws.dataset.catalog))
    text = base_text_vectors(ws, log=RunLog(None, "cold_start"))
    among_cold = {
        name: evaluate(found, asked, learnt, among=cold)
        for name, found in _rankings(retriever, text, asked.histories, among=cold)
    }
    everywhere = {
        name: evaluate(found, asked, learnt) for name, found in _rankings(retriever, text, asked.histories, among=None)
    }
    _print_table(among_cold, f"{len(cold):,} cold candidates, {len(asked):,} users")
    _print_table(everywhere, f"all {len(learnt):,} items as candidates, {len(asked):,} users")
    if final:
        _record(protocol.figure, among_cold, everywhere)


def _blinded(data: Path, folder: Path, protocol: Protocol) -> pl.DataFrame:
    """Writes log.parquet without the test items into `folder`; returns what was taken away."""
    log = load_interactions(data / "interactions.parquet", LoadConfig(min_rating=protocol.min_rating))
    log = log.filter(pl.col(ITEM_ID).n_unique().over(USER_ID) >= protocol.min_interactions)
    items = Vocabulary(load_items(data / "items.parquet", LoadConfig())[ITEM_ID].to_list())
    cold = pl.Series([items.ids[row] for row in held_out_items(items, protocol.split).asked("test")])
    hidden = log[ITEM_ID].is_in(cold.implode())
    log.filter(~hidden).write_parquet(folder / "log.parquet")
    return log.filter(hidden)


def _trained(run: str, data: Path, folder: Path, protocol: Protocol, *, settings: list[str], final: bool) -> Workspace:
    """A run over the blinded log, trained, and fitted on all of it where `final`."""
    split = ["split.kind=cold-items", "split.holdout=validation"]
    if protocol.cold_items is not None:
        split.append(f"split.cold_items={protocol.cold_items}")
    chosen = [word for setting in (*split, *settings) for word in ("--set", setting)]
    files = [str(folder / "log.parquet"), str(data.resolve() / "items.parquet")]
    steps = [["prepare", *files, *chosen], ["train-retriever"], *([["fit", "--final"]] if final else [])]
    for step in steps:
        subprocess.run([*CLI, *step, "--run", run], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return open_workspace(ROOT / run)


def _asked(ws: Workspace, truth: pl.DataFrame) -> Holdout:
    """Every user with a known and a hidden interaction."""
    known = truth.filter(pl.col(USER_ID).is_in(pl.Series(ws.dataset.users.ids).implode()))
    taken = known.unique([USER_ID, ITEM_ID], maintain_order=True).group_by(USER_ID, maintain_order=True).agg(ITEM_ID)
    rows = ws.dataset.users.rows(taken[USER_ID].to_list())
    targets = Histories.of([ws.dataset.catalog.vocabulary.rows(ids).tolist() for ids in taken[ITEM_ID].to_list()])
    return Holdout("test", rows, ws.dataset.interactions.take(rows), targets)


def _rankings(
    retriever: Retriever, text: Scores, histories: Histories, *, among: Rows | None
) -> Iterator[tuple[str, Candidates]]:
    """Each system's name and its candidates: of the items `among`, or of the whole catalog."""
    if among is None:
        yield RETRIEVAL, retriever.candidates(histories, DEPTH)
    else:
        yield from _retrieved_among(retriever, histories, among).items()
    for name, vectors in ((CENTRED, centred(text)), (UNCENTRED, text)):
        yield name, _zero_shot(vectors, histories, name=name, among=among)


def _retrieved_among(retriever: Retriever, histories: Histories, among: Rows) -> dict[str, Candidates]:
    """The fused ranking, and that of each source alone, of the items `among`, every one of which is scored."""
    parts: dict[str, list[Candidates]] = {}
    for start in range(0, len(histories), USERS_AT_ONCE):
        batch = histories.take(np.arange(start, min(start + USERS_AT_ONCE, len(histories)), dtype=np.int64))
        found = retriever.scored(np.broadcast_to(among, (len(batch), len(among))), batch)
        parts.setdefault(RETRIEVAL, []).append(found.head(DEPTH))
        # A source that cannot tell cold items apart leaves ties: by row, lest it be paid for the fused order.
        by_row = found.ranked_by(-found.item_rows.astype(np.float32))
        for source, scores in by_row.sources.items():
            parts.setdefault(f"{source} alone", []).append(by_row.ranked_by(scores).head(DEPTH))
    return {name: concatenated(found, DEPTH) for name, found in parts.items()}


def _zero_shot(vectors: Scores, histories: Histories, *, name: str, among: Rows | None) -> Candidates:
    """Items by inner product with the mean vector of each history; the mean's length changes no order."""
    left_out = np.ones(len(vectors), dtype=np.bool_)
    left_out[among if among is not None else slice(None)] = False

    def score(batch: Histories) -> Scores:
        found = np.asarray(user_item_matrix(batch, len(vectors)) @ vectors @ vectors.T, dtype=np.float32)  # (b, N)
        found[:, left_out] = -np.inf
        return found

    return batched_candidates(score, histories, DEPTH, n_items=len(vectors), name=name)


def _print_table(systems: dict[str, Evaluation], caption: str) -> None:
    shown = (METRIC, "recall@50", "ndcg@100", "coverage@10")
    print(f"\n{caption}\n{'':28}" + "".join(f"{name:>14}" for name in shown) + f"{'over zero-shot':>16}")
    base = systems[CENTRED].metrics[METRIC]
    for name, system in systems.items():
        figures = "".join(f"{system.metrics[metric]:14.4f}" for metric in shown)
        print(f"{name:28}{figures}{system.metrics[METRIC] / base:16.2f}")


def _record(figure: str, among_cold: dict[str, Evaluation], everywhere: dict[str, Evaluation]) -> None:
    test = paired_bootstrap(among_cold[RETRIEVAL].per_user[METRIC], among_cold[CENTRED].per_user[METRIC])
    if test.relative is None or test.relative_low is None or test.relative_high is None:
        raise SystemExit(f"{figure}: zero-shot finds nothing, so there is no ratio")
    told = {
        part: {name: round(system.metrics[METRIC], 4) for name, system in systems.items()}
        for part, systems in (("cold_items_only", among_cold), ("all_items", everywhere))
    }
    record(
        "retrieval.json",
        figure,
        round(1 + test.relative, 4),
        low=round(1 + test.relative_low, 4),
        high=round(1 + test.relative_high, 4),
        users=test.users,
        recall20=told,
    )


if __name__ == "__main__":
    main()
