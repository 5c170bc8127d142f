"""Lists of all users, judged by a program outside of the project that scores files with none of our code."""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.steps import files_of
from data.load import LoadConfig, load_dataset
from data.schema import ITEM_ID, NO_ITEM, RANK, USER_ID, Candidates, Dataset, Holdout
from data.split import SplitConfig, make_split
from eval.metrics import ndcg10
from eval.significance import PairedTest, Verdict, paired_bootstrap

BLIND = "split.holdout=validation"
"""The setting of `prepare` for data without what the judge holds out: what is last there is for validation."""


@dataclass(frozen=True)
class Judge:
    """The program, and the whole data that it judges by.

    Attributes:
        program: its file.
        data: a folder of interactions.parquet and items.parquet.
    """

    program: Path
    data: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Judge":
        """By the options --judge and --data."""
        return cls(Path(args.judge).resolve(), Path(args.data).resolve())

    def blinded(self, folder: Path) -> list[str]:
        """Log and catalog without each user's last interaction, written into a folder."""
        subprocess.run([sys.executable, self.program, "blind", self.data, folder], check=True)
        return files_of(folder)

    def score(self, lists: Path, *, against: Path | None = None) -> dict[str, Any]:
        """Its figures of a file of lists, and of their difference to another file."""
        command = [sys.executable, str(self.program), "score", str(lists), "--data", str(self.data), "--json"]
        command += [] if against is None else ["--against", str(against)]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found


def verdict_of(low: float, high: float) -> Verdict:
    """What the judge's interval of a difference lets one say."""
    if low > 0:
        return Verdict.HELPS
    return Verdict.HARMS if high < 0 else Verdict.NO_EVIDENCE


def compared_by_report(lists: Path, others: Path, *, data: Path, config: LoadConfig) -> PairedTest:
    """NDCG@10 of the same two files by the split, the metric and the paired test of our own reports.

    Args:
        data: the whole data, with what the judge holds out.
        config: how it is read.
    """
    log, catalog = map(Path, files_of(data))
    dataset, _ = load_dataset(log, catalog, config)
    test = make_split(dataset, SplitConfig()).test
    ours, theirs = (ndcg10(_candidates(file, dataset, test), test.targets) for file in (lists, others))
    return paired_bootstrap(ours, theirs)


def _candidates(file: Path, dataset: Dataset, asked: Holdout) -> Candidates:
    """Lists of those asked, in their order; empty where the file has none."""
    frame = pl.read_parquet(file)
    place_of = np.full(len(dataset.users), -1)
    place_of[asked.user_rows] = np.arange(len(asked))
    places, ranks = place_of[dataset.users.rows(frame[USER_ID].to_list())], frame[RANK].to_numpy()
    known = places >= 0
    rows = np.full((len(asked), int(ranks.max())), NO_ITEM, dtype=np.int64)
    rows[places[known], ranks[known] - 1] = dataset.catalog.vocabulary.rows(frame[ITEM_ID].to_list())[known]
    score = np.where(rows == NO_ITEM, -np.inf, -np.arange(rows.shape[1])).astype(np.float32)
    return Candidates(rows, score)
