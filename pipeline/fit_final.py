"""A last fit on every interaction, with the settings that validation chose: for serving, not for figures."""

from pipeline.build_index import build_index
from pipeline.run_log import RunLog
from pipeline.train_reranker import train_reranker
from pipeline.train_retriever import train_retriever
from pipeline.workspace import FitKind, Workspace
from store.artifacts import Release


def fit_final(ws: Workspace, *, log: RunLog) -> Release:
    """Refits both stages on all interactions and publishes them together.

    The reranker is refitted only where the evaluation fit has one.

    Raises:
        MissingStep: when the evaluation fit, whose choices it repeats, is not there.
    """
    with ws.run.lock():
        train_retriever(ws, log=log, fit=FitKind.FINAL)
        release = build_index(ws, log=log, fit=FitKind.FINAL)
        if ws.run.has("reranker", ws.reranker_key(FitKind.EVALUATION)):
            release = train_reranker(ws, log=log, fit=FitKind.FINAL)
    return release
