"""Item vectors into a FAISS index, published together with the retriever that made them."""

from dataclasses import asdict

from index.faiss_index import FlatIndex
from pipeline.carry_over import carried_journal
from pipeline.run_log import RunLog
from pipeline.train_retriever import open_retriever
from pipeline.workspace import FitKind, Workspace
from retrieval.folder import save_vectors
from store.artifacts import Release
from store.releases import prune


def build_index(ws: Workspace, *, log: RunLog, fit: FitKind = FitKind.EVALUATION) -> Release:
    """Builds the index and publishes data set, retriever, vectors and index in one step.

    What was changed live since the data set was prepared is carried over, see `pipeline.carry_over`. A published
    reranker stays in the release only where it was trained behind this retriever.

    Raises:
        MissingStep: when the retriever has not been trained.
    """
    with ws.run.lock():
        retriever = open_retriever(ws, fit)
        key, vectors = ws.retriever_key(fit), retriever.item_vectors
        vectors_key = ws.run.write_artifact(
            "vectors", ws.vectors_made_from(fit), lambda folder: save_vectors(folder, vectors)
        )
        index = FlatIndex(vectors)
        index_key = ws.run.write_artifact(
            "index", ws.index_made_from(fit), lambda folder: index.save(folder, retriever=key, catalog=ws.fingerprint)
        )
        release = Release(
            dataset=ws.dataset_key,
            retriever=key,
            vectors=vectors_key,
            index=index_key,
            reranker=ws.reranker_key(fit) if ws.has_reranker(fit) else None,
        )
        release = ws.run.publish(**{**asdict(release), "live": carried_journal(ws.run, release, log=log)})
        prune(ws.run)
    log.record({"event": "index", "items": len(index), "dimension": index.dimension, "key": index_key})
    return release
