"""A reranker of the run as a teacher."""

import numpy as np

from data.schema import Candidates, Histories, Scores
from pipeline.run_log import RunLog
from pipeline.workspace import Workspace
from recommend.release import load_reranker
from rerank.fit import with_reranker_scores
from rerank.fusion import RERANKER
from store.errors import BadInput


def teacher_scores(
    ws: Workspace, key: str, candidates: Candidates, histories: Histories, *, setting: str, log: RunLog
) -> Scores:
    """(B, K) float32 fused scores of the reranker `key` for candidates in retrieval order; 0 where there is no item.

    Args:
        setting: by which it was named.

    Raises:
        MissingStep: when the run has no such reranker.
        BadInput: when it did not help on validation, so that there is nothing to learn from it.
    """
    teacher, fusion, _ = load_reranker(ws.run, key)
    if not fusion.weights[RERANKER]:
        raise BadInput(
            f"{setting} is {key}, which did not help on validation and has weight 0: there is nothing to learn from it;"
            " name one that helps"
        )
    log.say(f"asking the teacher {key} about {len(candidates):,} users")
    scored = fusion.score(with_reranker_scores(teacher, ws.dataset.catalog.texts, candidates, histories))
    return np.where(candidates.present, scored, np.float32(0)).astype(np.float32)
