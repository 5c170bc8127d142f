"""Item vectors into a FAISS index, published together with the retriever that made them."""

import shlex
from dataclasses import asdict

from index.build import plan_index
from pipeline.carry_over import carried_journal
from pipeline.memory import less_for_index, memory_for
from pipeline.run_log import RunLog
from pipeline.train_retriever import open_retriever
from pipeline.workspace import FitKind, Workspace
from retrieval.folder import save_vectors
from retrieval.retriever import some_queries
from store.artifacts import Release, Run
from store.errors import CorruptArtifact, MissingStep
from store.releases import prune


def build_index(ws: Workspace, *, log: RunLog, fit: FitKind | None = None) -> Release:
    """Builds the index and publishes data set, retriever, vectors and index in one step.

    Without a `fit` it is the final one where that is published and as the present settings make it, so that another
    index does not take it out of service; else the evaluation fit.

    What was changed live since the data set was prepared is carried over, see `pipeline.carry_over`. A published
    reranker stays in the release only where it was trained behind this retriever, as it is now.

    Raises:
        MissingStep: when the retriever has not been trained.
        BadInput: when no kind of index reaches the recall target within the memory.
    """
    with ws.run.work():
        before = ws.run.release()
        rebuilt, fit = fit is None, fit or _fit_in_service(ws, before)
        retriever = open_retriever(ws, fit)
        key, vectors = ws.retriever_key(fit), retriever.item_vectors
        vectors_key = ws.run.write_artifact(
            "vectors", ws.vectors_made_from(fit), lambda folder: save_vectors(folder, vectors)
        )
        # Each with the history that validation asks them with.
        histories = ws.dataset.interactions if fit is FitKind.FINAL else ws.split.validation.histories
        queries = some_queries(retriever, histories, ws.config.index.sample_users)
        with memory_for("building the index", less_for_index(ws.config)):
            planned = plan_index(vectors, queries, ws.config.index, say=log.say)
        index = planned.index
        index_key = ws.run.write_artifact(
            "index",
            ws.index_made_from(fit),
            lambda folder: index.save(folder, retriever=key, catalog=ws.fingerprint, report=planned.report),
        )
        release = Release(
            dataset=ws.dataset_key,
            retriever=key,
            vectors=vectors_key,
            index=index_key,
            reranker=_reranker(ws, fit, log, served=before.reranker if rebuilt and fit is FitKind.FINAL else None),
        )
        # From here on no item may change: what is changed live is carried over.
        with ws.run.lock():
            release = ws.run.publish(**{**asdict(release), "live": carried_journal(ws.run, release, log=log)})
            prune(ws.run, prepared=ws.dataset_key)
    if fit is FitKind.EVALUATION and _fit_of(ws.run, before) == FitKind.FINAL:
        makes = f"{ws.command('fit --final')} makes one"
        log.say(f"no longer served: a final fit that is not by the settings, data and training of now; {makes}")
    log.say(f"built and served: the {fit} fit")
    what = {"kind": index.kind, "items": len(index), "dimension": index.dimension, "key": index_key}
    log.record({"event": "index", "fit": fit.value, **what})
    return release


def command_after(ws: Workspace) -> str:
    """What a user types next: a reranker for the evaluation fit, while a final fit that is served has all it needs."""
    if ws.run.release().retriever == ws.retriever_key(FitKind.FINAL):
        return f"python cli.py recommend --run {ws.run.root} --user {shlex.quote(ws.dataset.users.ids[0])}"
    return f"python cli.py train-reranker --run {ws.run.root}"


def _fit_in_service(ws: Workspace, release: Release) -> FitKind:
    key = ws.retriever_key(FitKind.FINAL)
    served = release.retriever == key and ws.run.has("retriever", key) and ws.is_current("retriever", FitKind.FINAL)
    return FitKind.FINAL if served else FitKind.EVALUATION


def _fit_of(run: Run, release: Release) -> str | None:
    """What the retriever of a release was fitted on; None where that cannot be told."""
    try:
        return str(run.manifest("retriever", release.retriever)["made_from"]["fit"]) if release.retriever else None
    except (MissingStep, CorruptArtifact):
        return None


def _reranker(ws: Workspace, fit: FitKind, log: RunLog, *, served: str | None) -> str | None:
    """Key of the one that belongs to what is published, and a word where it is not that of the settings and data now.

    Args:
        served: of the release whose retriever stays in service, to stay with it where there is none of today.
    """
    key = ws.reranker_key(fit)
    if ws.has_reranker(fit):
        return key
    again = ws.command("fit --final" if fit is FitKind.FINAL else "train-reranker")
    if served is not None and ws.run.has("reranker", served):
        told = ws.run.manifest("reranker", served).get("follows")
        if told is None or told.get("retriever") == ws.follows("retriever", fit)["retriever"]:
            log.say(f"kept: reranker {served}, of other settings or an earlier training; train today's by {again}")
            return served
    if ws.run.has("reranker", key):
        log.say(f"left out: reranker {key}, since what it was trained behind has been made anew; train it by {again}")
    return None
