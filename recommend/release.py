"""A published release, loaded: retriever, index and reranker that belong together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.prepared import load_prepared
from data.schema import Dataset, Scores
from fusion.linear import LinearFusion
from index.manifest import read_manifest
from index.published import PublishedIndex
from recommend.live_items import LiveItems
from rerank.base import Reranker
from rerank.gate import Gate
from rerank.kinds import load_reranker as load_trained
from rerank.kinds import read_prompt_config
from rerank.packed import PackedReranker
from rerank.prompt import PromptConfig
from retrieval.encode import EncoderConfig
from retrieval.folder import load_own_encoder, load_retriever, load_vectors, read_card
from retrieval.retriever import Retriever
from store.artifacts import Release, Run, Verify, artifact_key
from store.assets import local_folder, resolve_model
from store.errors import Mismatch, MissingStep

RERANK_FUSION, RERANK_GATE = "fusion.json", "gate.json"


@dataclass(frozen=True)
class Stages:
    """What a Recommender is made of.

    Attributes:
        reranker: None where the run has none; recommendations are then in retrieval order.
        fit: "evaluation" or "final".
        prompt: how much the reranker reads; None where there is none.
    """

    dataset: Dataset
    retriever: Retriever
    reranker: Reranker | None
    fusion: LinearFusion | None
    gate: Gate | None
    release: Release
    fit: str
    prompt: PromptConfig | None = None


def load_stages(run: Run, release: Release, *, with_reranker: bool = True) -> Stages:
    """Loads a release with all that has changed since it was made, and checks that its parts belong together.

    Raises:
        MissingStep: when a part is missing; the message names the command that makes it.
        CorruptArtifact: when a file is damaged.
        Mismatch: when the parts do not belong together.
    """
    _check_published(run, release)
    published = PublishedIndex(run, release, verify=Verify.FULL)
    return as_changed(load_base(run, published, with_reranker=with_reranker), published)


def as_changed(base: Stages, published: PublishedIndex, live: LiveItems | None = None) -> Stages:
    """What `load_base` gave, over the catalog as it is now.

    Args:
        base: stages of the release that `published` has open.
        published: the index and its changes.
        live: what has changed, where the caller has it at hand.

    Raises:
        CorruptArtifact: when what was changed cannot be read.
    """
    live = live_items(base, published) if live is None else live
    index = published.index.frozen()
    if not live:
        return replace(base, retriever=replace(base.retriever, index=index))
    return replace(base, dataset=live.over_dataset(base.dataset), retriever=live.over_retriever(base.retriever, index))


def live_items(base: Stages, published: PublishedIndex) -> LiveItems:
    """What has changed since the data set of the release was prepared.

    Raises:
        CorruptArtifact: when it cannot be read.
    """
    width = base.retriever.text.shape[1]
    folded = LiveItems.load(published.folder) or LiveItems.none(base.dataset.catalog, width)
    return folded.after(published.changes)


def load_base(
    run: Run,
    published: PublishedIndex,
    *,
    with_reranker: bool = True,
    opened: Callable[[str], Reranker] | None = None,
) -> Stages:
    """The stages of an opened release as they were fitted, without what has changed since.

    Args:
        opened: gives the reranker of a key, such as one in a child process; None: it is loaded here.

    Raises:
        MissingStep, CorruptArtifact, Mismatch: as `load_stages`.
    """
    release = published.release
    _check_published(run, release)
    assert release.retriever is not None
    assert release.index is not None
    dataset, manifest = load_prepared(_whole(run, "dataset", release.dataset or ""))
    made_from = run.manifest("retriever", release.retriever)["made_from"]
    _same(manifest["fingerprint"], made_from["dataset"], "the retriever", "train-retriever", run)
    _same(
        release.retriever,
        run.manifest("index", release.index)["made_from"]["retriever"],
        "the index",
        "build-index",
        run,
    )
    folder = _whole(run, "retriever", release.retriever)
    vectors = load_vectors(_whole(run, "text_vectors", read_card(folder).text_vectors))
    # An index of earlier data or models is refused here, a damaged one was when it was opened.
    read_manifest(published.folder).check_fingerprints(
        published.folder, retriever=release.retriever, catalog=manifest["fingerprint"]
    )
    retriever = load_retriever(folder, texts=dataset.catalog.texts, text_vectors=vectors, index=published.index)
    if release.vectors is not None:
        indexed = load_vectors(_whole(run, "vectors", release.vectors))
        _check_vectors(retriever, indexed, run)
        # Mapped, where the towers' own would be in the memory of every process.
        retriever = replace(retriever, item_vectors=indexed)
    reranker, fusion, gate, prompt = None, None, None, None
    if with_reranker and release.reranker is not None:
        # Every reranker, of the final fit too, learns behind the evaluation fit of its retriever.
        teacher = artifact_key("retriever", {**made_from, "fit": "evaluation"})
        taught_by = run.manifest("reranker", release.reranker)["made_from"]["retriever"]
        _same(teacher, taught_by, "the reranker", "train-reranker", run)
        fusion, gate = load_weighing(run, release.reranker)
        reranker = opened(release.reranker) if opened else load_model(run, release.reranker)
        prompt = read_prompt_config(run.artifact("reranker", release.reranker))  # its bytes were checked above
    return Stages(dataset, retriever, reranker, fusion, gate, release, made_from["fit"], prompt)


def load_reranker(run: Run, key: str) -> tuple[PackedReranker[Any], LinearFusion, Gate]:
    """A reranker merged for inference, and the fusion and the gate fitted with it."""
    return load_model(run, key), *load_weighing(run, key)


def load_model(run: Run, key: str) -> PackedReranker[Any]:
    """A reranker merged for inference."""
    folder = _whole(run, "reranker", key)
    made_from: Mapping[str, Any] = run.manifest("reranker", key)["made_from"]
    source = resolve_model(made_from["config"]["model"])
    loaded = load_trained(folder, model_dir=local_folder(source), model_fingerprint=source.fingerprint)
    return loaded.merged()


def load_weighing(run: Run, key: str) -> tuple[LinearFusion, Gate]:
    """The fusion and the gate that were fitted with a reranker."""
    folder = _whole(run, "reranker", key)
    return LinearFusion.load(folder / RERANK_FUSION), Gate.load(folder / RERANK_GATE)


def encoder_of(run: Run, release: Release) -> tuple[Any, EncoderConfig]:
    """The encoder that read the catalog of a release: its own tuned one, or the one its config names."""
    folder = run.artifact("retriever", release.retriever or "")
    settings = read_card(folder).config.encoder
    return load_own_encoder(folder, settings), settings


def _check_published(run: Run, release: Release) -> None:
    if release.retriever is None or release.index is None:
        trained = any((run.root / "artifacts" / "retriever").glob("[!.]*"))
        noun, command = ("index", "build-index") if trained else ("retriever", "train-retriever")
        raise MissingStep(
            f"{run.root} has published no {noun}: make it with 'python cli.py {command} --run {run.root}'"
        )


def _whole(run: Run, kind: str, key: str) -> Path:
    return run.artifact(kind, key, verify=Verify.FULL)


def _check_vectors(retriever: Retriever, indexed: Scores, run: Run) -> None:
    """The index has its own copy of the item vectors: it must be that of these towers, not of earlier ones."""
    now = retriever.item_vectors
    if now.shape != indexed.shape or not np.allclose(now, indexed, atol=1e-3 * max(1.0, float(np.abs(now).max()))):
        raise Mismatch(
            f"the index of {run.root} holds other item vectors than its retriever gives, which was trained again "
            f"since: make it again with 'python cli.py build-index --run {run.root}'"
        )


def _same(expected: str, found: str, noun: str, command: str, run: Run) -> None:
    if expected != found:
        raise Mismatch(
            f"{noun} of {run.root} was made from {found}, but the run now has {expected}: "
            f"make it again with 'python cli.py {command} --run {run.root}'"
        )
