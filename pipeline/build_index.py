"""Item vectors into a FAISS index, published together with the retriever that made them."""

from dataclasses import asdict

from index.build import plan_index
from pipeline.carry_over import carried_journal
from pipeline.memory import less_for_index, memory_for
from pipeline.run_log import RunLog
from pipeline.train_retriever import open_retriever
from pipeline.workspace import FitKind, Workspace
from retrieval.folder import save_vectors
from retrieval.retriever import some_queries
from store.artifacts import Release
from store.releases import prune


def build_index(ws: Workspace, *, log: RunLog, fit: FitKind = FitKind.EVALUATION) -> Release:
    """Builds the index and publishes data set, retriever, vectors and index in one step.

    What was changed live since the data set was prepared is carried over, see `pipeline.carry_over`. A published
    reranker stays in the release only where it was trained behind this retriever, as it is now.

    Raises:
        MissingStep: when the retriever has not been trained.
        BadInput: when no kind of index reaches the recall target within the memory.
    """
    with ws.run.work():
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
            reranker=_reranker(ws, fit, log),
        )
        # From here on no item may change: what is changed live is carried over.
        with ws.run.lock():
            release = ws.run.publish(**{**asdict(release), "live": carried_journal(ws.run, release, log=log)})
            prune(ws.run, prepared=ws.dataset_key)
    log.record(
        {"event": "index", "kind": index.kind, "items": len(index), "dimension": index.dimension, "key": index_key}
    )
    return release


def _reranker(ws: Workspace, fit: FitKind, log: RunLog) -> str | None:
    """Key of the one that belongs to what is published, and a word where there is one for an earlier training."""
    key = ws.reranker_key(fit)
    if ws.has_reranker(fit):
        return key
    if ws.run.has("reranker", key):
        again = ws.command("fit --final" if fit is FitKind.FINAL else "train-reranker")
        log.say(f"left out: reranker {key}, since what it was trained behind has been made anew; train it by {again}")
    return None
