"""A retriever whose counts have caught up with the log, while what was trained stays."""

from dataclasses import replace

import numpy as np

from data.schema import Histories, Scores
from retrieval.likeness import Likeness
from retrieval.retriever import Retriever
from retrieval.stand_ins import find_stand_ins
from retrieval.transitions import Transitions
from retrieval.trend import SECONDS_PER_DAY, Trend


def refreshed(retriever: Retriever, log: Histories) -> Retriever:
    """The same with transitions, stand-ins, trend and recent popularity counted over `log`; takes seconds.

    Towers, index and the weights of the fusion are those of the training.

    Args:
        log: everything that is known by now, what the retriever was trained on included.
    """
    n_items = len(retriever.text)
    stand_ins = find_stand_ins(Likeness(retriever.text, retriever.words), np.bincount(log.item_rows, minlength=n_items))
    counted = Transitions.fit(log, n_items, retriever.transitions.config)
    return replace(
        retriever,
        transitions=replace(counted, stand_ins=stand_ins),
        trend=Trend.fit(log, n_items, retriever.config.trend_days),
        recent_popularity=recent_popularity(log, n_items, retriever.config.recent_days),
    )


def recent_popularity(train: Histories, n_items: int, days: int) -> Scores:
    """(N,) float32 interactions of each item in the last `days` days of the log, or in all of it without time.

    Items that tie, most of all at 0, are told apart by their interactions over all time.
    """
    overall = np.bincount(train.item_rows, minlength=n_items).astype(np.float32)
    if train.timestamps is None or not (train.timestamps != Histories.NO_TIME).any():
        return overall
    recent = train.timestamps > train.timestamps.max() - days * SECONDS_PER_DAY
    counts = np.bincount(train.item_rows[recent], minlength=n_items).astype(np.float32)
    return np.asarray(counts + overall / (overall.sum() + 1), dtype=np.float32)
