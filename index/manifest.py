"""What an index folder says of itself: what it was made from, and canaries that prove it answers alike."""

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.schema import Rows, Scores
from index.base import VectorIndex
from index.layout import Effort, Layout
from store.errors import CorruptArtifact, Mismatch, MissingStep

MANIFEST_FILE = "index.json"
FORMAT = 2
"""1: flat indexes only, without layout, effort and report."""
METRIC = "inner_product"
"""What every search maximises."""

CANARY_COUNT = 8
CANARY_DEPTH = 10
CANARY_SEED = 20_140_723

CANARY_TOLERANCE = 1e-4
"""Largest relative difference of a canary's score: another processor may add in another order."""


class Canary(BaseModel):
    """The answer that one seeded query got when the index was built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[int, ...] = Field(description="item rows, best first")
    scores: tuple[float, ...] = Field(description="their inner products")


class Trial(BaseModel):
    """What one kind measured when an index was planned; times on one query, in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout = Field(description="what was built")
    effort: Effort = Field(description="the cheapest effort that was found to reach the target")
    recall: float = Field(description="share of the exact best k that it finds, over queries kept for this")
    k: int = Field(description="how many")
    p50_ms: float = Field(description="median")
    p99_ms: float = Field(description="one in a hundred takes longer")
    queries_per_second: float = Field(description="in batches")
    searched_bytes: float = Field(description="for each vector, of what searches go through")
    kept_bytes: float = Field(description="for each vector, of vectors kept beside it, mapped")
    build_seconds: float = Field(description="training and filling")


class IndexManifest(BaseModel):
    """The content of index.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, description="what this file looks like")
    kind: str = Field(description="how vectors are laid out")
    metric: str = Field(description="what search maximises")
    dimension: int = Field(description="length of every vector")
    count: int = Field(description="number of vectors")
    bytes: int = Field(description="size of the index file")
    layout: Layout = Field(Layout(), description="what was decided when it was built")
    effort: Effort = Field(Effort(), description="how much a search does")
    faiss: str = Field(description="version of FAISS that wrote it")
    retriever: str = Field(description="fingerprint of the model that made the vectors")
    catalog: str = Field(description="fingerprint of the catalog whose rows they are")
    canaries: tuple[Canary, ...] = Field(description="answers to the seeded queries")
    report: tuple[Trial, ...] = Field((), description="what was measured when the layout was chosen, that one first")

    def check_fingerprints(self, folder: Path, *, retriever: str | None, catalog: str | None) -> None:
        """Compares with what the caller has at hand; None is not compared.

        Raises:
            Mismatch: when the index was made from something else.
        """
        for noun, found, expected in (
            ("retriever", self.retriever, retriever),
            ("catalog", self.catalog, catalog),
        ):
            if expected is not None and found != expected:
                raise Mismatch(
                    f"the index in {folder} was built with {noun} {found}, this run has {noun} {expected}: "
                    "run 'python cli.py build-index' again"
                )


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Writes index.json into a folder that is not yet published."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> IndexManifest:
    """Reads index.json.

    Raises:
        MissingStep: when there is none.
        CorruptArtifact: when it is not the JSON that was written.
        Mismatch: when a newer version of this program wrote it.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingStep(f"{folder} holds no index: run 'python cli.py build-index'")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (written := content.get("format", 1)) > FORMAT:
            raise Mismatch(
                f"{path} has format {written}, this version reads up to {FORMAT}: a newer version wrote it; use that "
                "one, or run 'python cli.py build-index'"
            )
        return IndexManifest.model_validate(content)
    except (ValueError, AttributeError, TypeError, ValidationError) as error:
        raise CorruptArtifact(f"{path} is not a readable index manifest: run 'python cli.py build-index'") from error


def canary_queries(dimension: int) -> Scores:
    """(8, D) float32 unit vectors, the same for every index of that dimension."""
    drawn = np.random.default_rng(CANARY_SEED).standard_normal((CANARY_COUNT, dimension))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def draw_canaries(index: VectorIndex) -> tuple[Canary, ...]:
    """What the index answers to the canary queries now."""
    scores, rows = _answers(index)
    return tuple(
        Canary(rows=tuple(map(int, row)), scores=tuple(map(float, score)))
        for row, score in zip(rows, scores, strict=True)
    )


def check_canaries(index: VectorIndex, canaries: tuple[Canary, ...], folder: Path) -> None:
    """Asks the canary queries again and compares; rows whose scores are equal may change places.

    Raises:
        CorruptArtifact: when an answer differs.
    """
    scores, rows = _answers(index)
    expected_scores = np.array([canary.scores for canary in canaries], dtype=np.float32)
    expected_rows = np.array([canary.rows for canary in canaries], dtype=np.int64)
    tolerance = CANARY_TOLERANCE * max(1e-30, float(np.abs(expected_scores).max(initial=0)))
    alike = expected_scores.shape == scores.shape and expected_rows.shape == rows.shape
    if alike:
        alike = bool(np.allclose(scores, expected_scores, rtol=0, atol=tolerance))
        # A row may stand elsewhere only among neighbours of the same score.
        moved = rows != expected_rows
        gap = np.abs(np.diff(expected_scores, axis=1, prepend=np.inf, append=-np.inf))
        near = np.minimum(gap[:, :-1], gap[:, 1:]) <= 2 * tolerance
        near[:, -1] = True  # the row after the last place is not written down
        alike = alike and not (moved & ~near).any()
    if not alike:
        raise CorruptArtifact(
            f"the index in {folder} answers its canary queries differently from when it was built: "
            "run 'python cli.py build-index' again"
        )


def _answers(index: VectorIndex) -> tuple[Scores, Rows]:
    return index.search(canary_queries(index.dimension), min(CANARY_DEPTH, len(index)))
