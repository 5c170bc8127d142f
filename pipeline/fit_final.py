"""A last fit on every interaction, with the settings that validation chose: for serving, not for figures."""

from fusion.linear import LinearFusion
from pipeline.build_index import build_index
from pipeline.run_log import RunLog
from pipeline.train_reranker import make_reranker
from pipeline.train_retriever import evaluation_folder, train_retriever
from pipeline.workspace import FitKind, Workspace
from recommend.release import RERANK_FUSION
from rerank.fusion import RERANKER
from store.artifacts import Release


def fit_final(ws: Workspace, *, log: RunLog, force: bool = False) -> Release:
    """Refits both stages on all interactions and publishes them together.

    The reranker is refitted only where the evaluation fit has one that helped: one of weight 0 would be
    trained and loaded to change nothing.

    Raises:
        MissingStep: when the evaluation fit, whose choices it repeats, is not there.
    """
    with ws.run.work():
        evaluation_folder(ws)  # asked for before the catalog is read, which takes minutes
        train_retriever(ws, log=log, fit=FitKind.FINAL, force=force)
        if _reranker_helped(ws):
            make_reranker(ws, log=log, fit=FitKind.FINAL, force=force)
        else:
            log.say("no reranker in the final release: the evaluation fit has none, or gave it no weight")
        # Last, since it publishes: a kill before it leaves the old release, never one without its reranker.
        return build_index(ws, log=log, fit=FitKind.FINAL)


def _reranker_helped(ws: Workspace) -> bool:
    if not ws.has_reranker(FitKind.EVALUATION):
        return False
    folder = ws.run.artifact("reranker", ws.reranker_key(FitKind.EVALUATION))
    return LinearFusion.load(folder / RERANK_FUSION).weights[RERANKER] > 0
