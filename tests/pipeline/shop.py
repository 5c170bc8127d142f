"""A small shop with a planted rule, a tiny language model, and a run that is trained on both."""

import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import Config, with_overrides
from fusion.linear import LinearFusion
from pipeline.build_index import build_index
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_reranker import train_reranker
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, Workspace, open_workspace
from recommend.release import RERANK_FUSION
from rerank.fusion import RERANKER, RETRIEVAL
from store.artifacts import MANIFEST, Run
from tests.rerank.tiny_bert import WORDS, write_tiny_bert

ITEMS, USERS = 60, 120
DAY_S = 86_400
START_S = 1_600_000_000
TINY = (
    "retriever.encoder.max_tokens=16",
    "retriever.encoder.precision=float32",
    *(
        f"retriever.{kind}.{setting}"
        for kind in ("recency", "sequence", "text")
        for setting in ("text_dim=8", "residual_dim=8", "epochs=8", "batch_size=64", "learning_rate=0.02")
    ),
    "retriever.sequence.layers=1",
    "retriever.sequence.history_items=12",
    "retriever.sequence.hidden_dropout=0.1",
    "retriever.text.max_tokens=32",
    "retriever.per_source=25",
    "reranker.encoder.prompt.max_history_items=4",
    "reranker.encoder.prompt.max_history_tokens=40",
    "reranker.encoder.prompt.max_item_tokens=8",
    "reranker.encoder.prompt.max_candidate_tokens=8",
    "reranker.encoder.head_width=8",
    "reranker.train.epochs=1",
    "reranker.train.budget_minutes=60",
    "reranker.train.list_size=6",
    "reranker.train.precision=float32",
    "reranker.depth=8",
    "reranker.positions_per_user=1",
    "recommend.depth=8",
    "recommend.candidates=30",
    "baselines.recent_days=[30]",
    "baselines.knn_history_decay=[0.7]",
    "baselines.knn_shrinkage=[0.0]",
    "baselines.ease_l2=[20.0]",
    "baselines.ials_factors=[4]",
    "baselines.ials_alpha=[2.0]",
    "baselines.text_weight=[0.0, 0.1]",
)


@dataclass(frozen=True)
class Shop:
    """Files of a log and a catalog, a model folder, and a run in which everything up to the reranker is made."""

    folder: Path
    log: Path
    catalog: Path
    model: Path
    run: Path

    @property
    def settings(self) -> list[str]:
        """Assignments for --set: tiny, fast, and with the tiny model."""
        return [*TINY, f"retriever.encoder.model={self.model}", f"reranker.model={self.model}"]

    @property
    def set_options(self) -> list[str]:
        """The same as command line options."""
        return [part for setting in self.settings for part in ("--set", setting)]

    @property
    def config(self) -> Config:
        return with_overrides(Config(), self.settings)

    def copy(self, folder: Path) -> Path:
        """A copy of the trained run, to be changed or broken."""
        return Path(shutil.copytree(self.run, folder / "run"))


def make_shop(folder: Path) -> Shop:
    log, catalog = folder / "log.csv", folder / "catalog.csv"
    write_rows(catalog, ["item_id", "title", "genres"], catalog_rows())
    write_rows(log, ["user_id", "item_id", "timestamp"], log_rows())
    shop = Shop(folder, log, catalog, sentence_model(folder / "model"), folder / "run")
    train(shop.run, shop.log, shop)
    return shop


def train(root: Path, log_path: Path, shop: Shop, *settings: str) -> Workspace:
    """Makes every step of a run from a log."""
    log = RunLog(Run(root), "test", quiet=True)
    config = with_overrides(shop.config, settings)
    ws = prepare(Run(root), log_path, shop.catalog, users=None, config=config, log=log)
    train_retriever(ws, log=log)
    build_index(ws, log=log)
    train_reranker(ws, log=log)
    return open_workspace(root)


def quiet(ws: Workspace) -> RunLog:
    return RunLog(ws.run, "test", quiet=True)


def item_id(row: int) -> str:
    return f"i{row % ITEMS:02d}"


def catalog_rows() -> list[list[str]]:
    """Two words an item; the second word of an item is the first of the item that follows it."""
    return [[item_id(row), f"{WORDS[row]} {WORDS[(row + 1) % ITEMS]}", f"genre{row % 4}"] for row in range(ITEMS)]


def log_rows() -> list[list[str]]:
    """Planted: item i is followed by i + 1, but one time in five by any other; each item once a user at most."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        length = 2 if user < 3 else int(rng.integers(4, 11))
        taken = [int(rng.integers(ITEMS))]
        while len(taken) < length:
            following = (taken[-1] + 1) % ITEMS if rng.random() > 0.2 else int(rng.integers(ITEMS))
            if following not in taken:
                taken.append(following)
        start = START_S + int(rng.integers(200)) * DAY_S
        rows += [[f"u{user:03d}", item_id(row), str(start + step * DAY_S)] for step, row in enumerate(taken)]
    return rows


def without_last(rows: list[list[str]]) -> list[list[str]]:
    """The log of a judge who keeps each user's last interaction to herself."""
    last = {row[0]: place for place, row in enumerate(rows)}
    return [row for place, row in enumerate(rows) if last[row[0]] != place]


def write_rows(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def sentence_model(folder: Path, *, seed: int = 0) -> Path:
    """The tiny BERT as a sentence-transformers folder, which serves as the reranker's base, too."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    plain = write_tiny_bert(folder.with_name(folder.name + "-plain"), seed=seed)
    words = Transformer(str(plain))
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension()), Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


def weigh_reranker(root: Path, *, retrieval: float, reranker: float) -> None:
    """Gives the run's reranker these weights, as if validation had chosen them."""
    ws = open_workspace(root)
    key = ws.reranker_key(FitKind.EVALUATION)
    folder = ws.run.artifact("reranker", key)
    fusion = replace(LinearFusion.load(folder / RERANK_FUSION), weights={RETRIEVAL: retrieval, RERANKER: reranker})

    def write(new: Path) -> None:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        (new / MANIFEST).unlink()
        fusion.save(new / RERANK_FUSION)

    follows = ws.follows("reranker", FitKind.EVALUATION)
    ws.run.write_artifact("reranker", ws.reranker_made_from(FitKind.EVALUATION), write, follows=follows)
