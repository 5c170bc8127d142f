"""The second stage, trained behind the evaluation fit's retriever and kept as an artifact."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import Candidates, Histories, Holdout, Scores
from fusion.linear import LinearFusion
from pipeline.memory import less_for_reranker, memory_for
from pipeline.run_log import RunLog
from pipeline.teacher import teacher_scores
from pipeline.train_retriever import UNFINISHED, nobody, open_retriever, train_retriever
from pipeline.workspace import FitKind, Workspace
from recommend.ledger import LEDGER, Spent, add_to_ledger
from recommend.release import RERANK_FUSION, RERANK_GATE, load_reranker
from rerank.card import BaseModelName
from rerank.fit import RerankerRecord, TaskData, fit_reranker, retrieval_column, with_reranker_scores
from rerank.fusion import RETRIEVAL, FusionRecord, for_another
from rerank.gate import Gate
from rerank.grades import rating_scale
from rerank.kinds import create_reranker
from rerank.objective import Objective
from rerank.packed import PackedReranker
from retrieval.retriever import Retriever, concatenated
from store.assets import local_folder
from store.checkpoint import Checkpoints

RECORD = "record.json"
TRAINING_CANDIDATES = 50
"""Candidates of a user that hard negatives are drawn from."""
COMPARED_USERS = 200
"""Whose lists tell how the scores of two trainings compare."""


def train_reranker(ws: Workspace, *, log: RunLog, fit: FitKind = FitKind.EVALUATION, force: bool = False) -> str:
    """Trains unless exactly this reranker is already there, publishes it beside its retriever, and returns its key.

    Raises:
        MissingStep: when the retriever has not been trained, or no index has been built with it.
    """
    with ws.run.work():
        key = make_reranker(ws, log=log, fit=fit, force=force)
        release = ws.run.release()
        if release.retriever == ws.retriever_key(fit):
            ws.run.publish(reranker=key)
        elif release.retriever == ws.retriever_key(FitKind.FINAL):
            log.say(f"published is the final fit, which stays as it is; refit it with {ws.command('fit --final')}")
        else:
            log.say(f"the index is not of this retriever: publish both with {ws.command('build-index')}")
    return key


def make_reranker(ws: Workspace, *, log: RunLog, fit: FitKind, force: bool = False) -> str:
    """Trains unless exactly this reranker is already there; returns its key and publishes nothing."""
    with ws.run.work():
        key = ws.reranker_key(fit)
        if ws.run.has("reranker", key) and ws.is_current("reranker", fit) and not force:
            log.say(f"the reranker of these settings and data is already made ({key}); --force trains it again")
            return key
        if force:
            forget_unfinished(ws)
        started = time.monotonic()
        reranker, fusion, gate, record = _fit(ws, fit=fit, log=log)

        def write(folder: Path) -> None:
            reranker.save(folder)
            fusion.save(folder / RERANK_FUSION)
            gate.save(folder / RERANK_GATE)
            (folder / RECORD).write_text(json.dumps(record.as_json(), indent=1) + "\n", encoding="utf-8")

        made = ws.run.write_artifact("reranker", ws.reranker_made_from(fit), write, follows=ws.follows("reranker", fit))
        forget_unfinished(ws)
        # A training that was gone on with has taken longer than this command.
        minutes = max((time.monotonic() - started) / 60, sum(one.minutes for one in record.rounds))
        tokens = sum(one.tokens for one in record.rounds)
        spent = Spent(trainings=1, training_tokens=tokens, training_minutes=minutes)
        add_to_ledger(ws.run.root / LEDGER, spent)
    return made


def forget_unfinished(ws: Workspace) -> None:
    """Removes the checkpoints of trainings of rerankers."""
    for folder in (ws.run.root / UNFINISHED).glob("reranker-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _fit(ws: Workspace, *, fit: FitKind, log: RunLog) -> tuple[PackedReranker[Any], LinearFusion, Gate, RerankerRecord]:
    settings = ws.config.reranker
    if settings.train.objective is Objective.GRADED:
        settings = settings.graded_by(lambda stated: rating_scale(ws.dataset.interactions, stated))
    retriever = open_retriever(ws, FitKind.EVALUATION)
    train, learners, selectors = ws.split.train, ws.learners, ws.selectors
    if fit is FitKind.FINAL:
        # Every held-out item teaches, seen with the candidates of a retriever that did not know it.
        learners = Holdout.joined([ws.split.validation, ws.split.test], part="everything")
        train, selectors = ws.dataset.interactions, nobody(ws.dataset.interactions)
    wanted = max(TRAINING_CANDIDATES, settings.depth)
    log.say(f"candidates for {len(learners):,} learning and {len(selectors):,} selecting users")
    exclude_known = ws.config.recommend.exclude_known
    # Those of the weighted sum: its network was taught by the same users, and would show them their answers.
    learner_candidates = retriever.linear.candidates(learners.histories, wanted, exclude_known=exclude_known)
    if settings.earlier_targets:
        earlier, its_candidates = _earlier(ws, wanted, log=log)
        learners = Holdout.joined([learners, earlier], part=learners.part)
        learner_candidates = concatenated([learner_candidates, its_candidates], wanted)
    task = TaskData(
        texts=ws.dataset.catalog.texts,
        train=train,
        learners=learners,
        learner_candidates=learner_candidates,
        teacher_scores=_taught(ws, learner_candidates, learners.histories, log=log),
        selectors=selectors,
        selector_candidates=retriever.candidates(selectors.histories, wanted, exclude_known=exclude_known),
    )
    base = BaseModelName(settings.model, ws.reranker_base.fingerprint)
    reranker = create_reranker(local_folder(ws.reranker_base), base=base, config=settings, seed=settings.train.seed)
    made_from = ws.reranker_made_from(fit)
    belongs_to = {**made_from, "reranker": made_from["config"], "follows": ws.follows("reranker", fit)}
    del belongs_to["config"]
    with memory_for("training the reranker", less_for_reranker(ws.config, reranker.kind)):
        fusion, gate, record = fit_reranker(
            reranker,
            task,
            config=settings,
            log=log.record,
            checkpoints=lambda name: Checkpoints(
                ws.run.root / UNFINISHED / f"reranker-{fit.value}-{name}",
                belongs_to,
                config=settings.checkpoint,
                restart="start anew with 'train-reranker --force'" if fit is FitKind.EVALUATION else None,
            ),
        )
    if fit is FitKind.FINAL:
        fusion, gate, chosen = _chosen(ws, retriever, reranker)
        record = replace(record, fusion=chosen)
        log.record({"event": "fusion", **chosen.as_json()})
    return reranker, fusion, gate, record


def _chosen(
    ws: Workspace, retriever: Retriever, reranker: PackedReranker[Any]
) -> tuple[LinearFusion, Gate, FusionRecord]:
    """How validation weighed the evaluation fit's reranker, for the scores of this one."""
    key = ws.reranker_key(FitKind.EVALUATION)
    theirs, fusion, gate = load_reranker(ws.run, key)
    asked = ws.selectors.take(np.arange(min(len(ws.selectors), COMPARED_USERS)))
    exclude_known = ws.config.recommend.exclude_known
    candidates = retriever.candidates(asked.histories, ws.config.reranker.depth, exclude_known=exclude_known)
    before, now = (
        with_reranker_scores(one, ws.dataset.catalog.texts, candidates, asked.histories)
        for one in (theirs, reranker.merged())
    )
    fusion = for_another(fusion, before, now)
    written = json.loads((ws.run.artifact("reranker", key) / RECORD).read_text(encoding="utf-8"))["fusion"]
    return fusion, gate, replace(FusionRecord(**written), weights=dict(fusion.weights))


def _earlier(ws: Workspace, wanted: int, *, log: RunLog) -> tuple[Holdout, Candidates]:
    """Further learners: the last items of each history in training, asked of a retriever that never saw them."""
    count = ws.config.reranker.earlier_targets
    train_retriever(ws, log=log, fit=FitKind.EARLIER)
    retriever = open_retriever(ws, FitKind.EARLIER)
    asked = Holdout.joined([earlier_holdout(ws.split.train, steps) for steps in range(count, 0, -1)], part="validation")
    log.say(f"candidates for {len(asked):,} earlier items of their histories")
    return asked, retriever.linear.candidates(asked.histories, wanted, exclude_known=ws.config.recommend.exclude_known)


def earlier_holdout(train: Histories, steps: int) -> Holdout:
    """Every user who has `steps` items and one before them, asked for the first of these last `steps`."""
    users = np.flatnonzero(train.lengths > steps).astype(np.int64)
    known = train.without_last(steps).take(users)
    upto = train.without_last(steps - 1).take(users)
    is_last = np.zeros(len(upto.item_rows), dtype=np.bool_)
    is_last[upto.offsets[1:] - 1] = True
    return Holdout("validation", users, known.asked_after_last(), upto.keep(is_last))


def _taught(ws: Workspace, candidates: Candidates, histories: Histories, *, log: RunLog) -> Scores | None:
    """(B, K) float32 scores of the config's teacher for the top candidates; None where it names none."""
    settings = ws.config.reranker
    if settings.teacher is None:
        return None
    head = candidates.head(settings.depth)
    if settings.teacher == RETRIEVAL:
        return retrieval_column(head)
    return teacher_scores(ws, settings.teacher, head, histories, setting="reranker.teacher", log=log)
