"""The first stage taught by a reranker, or by all of itself: other user towers, as an artifact of its own."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import Histories
from pipeline.run_log import RunLog
from pipeline.teacher import teacher_scores
from pipeline.workspace import FitKind, Workspace
from rerank.fit import retrieval_column
from retrieval.distil import OWN_SCORES, DistilConfig, Lessons, distil_towers
from retrieval.encode import load_encoder
from retrieval.fit import FittedRetriever, drawn
from retrieval.folder import ENCODER, load_vectors, read_card, read_recipe, save_retriever
from retrieval.retriever import Retriever
from retrieval.weighing import Weighed, with_fitted_fusion
from store.artifacts import Verify
from store.errors import Mismatch

TAUGHT = "taught"
"""Key of a training record that tells of what a teacher changed."""


def untaught(ws: Workspace) -> Workspace:
    """The same without a teacher of the first stage: whose retriever the taught one begins from."""
    retriever = ws.config.retriever.model_copy(update={"distil": DistilConfig()})
    return replace(ws, config=ws.config.model_copy(update={"retriever": retriever}))


def distil_retriever(ws: Workspace, base: Retriever, learnt_from: Histories, *, fit: FitKind, log: RunLog) -> str:
    """Teaches the user towers of `base`, which was fitted on `learnt_from`; returns the key of what is made.

    Validation chooses epochs and weights in the evaluation fit, and the other fits repeat its choices.

    Raises:
        MissingStep: when the run has no such teacher.
        Mismatch: when the teacher was not trained behind this retriever.
        BadInput: when it did not help on validation.
    """
    settings = ws.config.retriever.distil
    assert settings.teacher is not None
    evaluation = fit is FitKind.EVALUATION
    histories = ws.learners.histories if evaluation else learnt_from
    if settings.teacher != OWN_SCORES:
        _check_teacher(ws, settings.teacher)
        if evaluation:
            # What came after these histories is what the teacher was taught: about the whole of them it would repeat
            # group A's answers, more surely than it can know anything of a user whom it has not met.
            histories = histories.without_last(1).asked_after_last()
    lessons = _lessons(ws, base, histories, log=log)
    nobody = ws.selectors.take(np.zeros(0, dtype=np.int64))
    validation = drawn(ws.selectors, ws.config.retriever.train) if evaluation else nobody
    towers, records = distil_towers(
        base.towers,
        lessons,
        validation=validation,
        config=settings,
        log=log.record,
        epochs=None if evaluation else _chosen_epochs(ws),
    )
    retriever = replace(base, towers=towers, config=ws.config.retriever.suited(learnt_from))
    if not evaluation:
        first = read_recipe(_evaluation_folder(ws))
        towers = replace(towers, weights=first.tower_weights)
        retriever = replace(retriever, towers=towers, fusion=first.fusion, network=first.network)
    weighed = Weighed(retriever)
    if evaluation and len(validation):
        weighed = with_fitted_fusion(retriever, validation, log.record, learners=ws.learners, say=log.say)
    return _written(ws, weighed, [asdict(record) for record in records], fit=fit)


def _written(ws: Workspace, weighed: Weighed, records: list[dict[str, Any]], *, fit: FitKind) -> str:
    """The key of an artifact that has everything else of the retriever that was not taught."""
    retriever = weighed.retriever
    folder = ws.run.artifact("retriever", untaught(ws).retriever_key(fit), verify=Verify.FULL)
    card, recipe = read_card(folder), read_recipe(folder)
    recipe = replace(recipe, tower_weights=retriever.towers.weights, fusion=retriever.fusion, network=retriever.network)
    told = [*card.records, *({**record, TAUGHT: True} for record in records)]
    encoder = load_encoder(str(folder / ENCODER), card.config.encoder) if card.tuned else None
    vectors = load_vectors(ws.run.artifact("text_vectors", card.text_vectors))
    fitted = FittedRetriever(retriever, vectors, recipe, told, encoder, weighed.ndcg10, weighed.own)
    return ws.run.write_artifact(
        "retriever",
        ws.retriever_made_from(fit),
        lambda made: save_retriever(made, fitted, text_vectors=card.text_vectors),
        follows=ws.follows("retriever", fit),
    )


def _lessons(ws: Workspace, base: Retriever, histories: Histories, *, log: RunLog) -> Lessons:
    settings = ws.config.retriever.distil
    assert settings.teacher is not None
    known = np.flatnonzero(histories.lengths > 0)
    rng = np.random.default_rng(settings.seed)
    asked = histories.take(np.sort(rng.permutation(known)[: settings.users]))
    base = base.linear  # its network knows answers of group A, who are asked here
    exclude_known = ws.config.recommend.exclude_known
    if settings.teacher == OWN_SCORES:
        candidates = base.candidates(asked, settings.depth, exclude_known=exclude_known)
        return Lessons(asked, candidates, retrieval_column(candidates))
    # As deep as the teacher read where its weight was found: its own depth, which its run may have changed since.
    config: dict[str, Any] = ws.run.manifest("reranker", settings.teacher)["made_from"]["config"]
    candidates = base.candidates(asked, int(config["depth"]), exclude_known=exclude_known)
    scores = teacher_scores(ws, settings.teacher, candidates, asked, setting="retriever.distil.teacher", log=log)
    return Lessons(asked, candidates, scores)


def _check_teacher(ws: Workspace, key: str) -> None:
    expected = untaught(ws).retriever_key(FitKind.EVALUATION)
    found = ws.run.manifest("reranker", key)["made_from"]["retriever"]
    if found != expected:
        raise Mismatch(
            f"retriever.distil.teacher is {key}, trained behind retriever {found}, but without a teacher these settings"
            f" make {expected}: name a reranker trained behind that one"
        )


def _chosen_epochs(ws: Workspace) -> dict[str, int]:
    """Member → epochs that the evaluation fit kept.

    Raises:
        MissingStep: when it has not been made.
    """
    records = read_card(_evaluation_folder(ws)).records
    return {record["name"]: record["best_epoch"] for record in records if record.get(TAUGHT)}


def _evaluation_folder(ws: Workspace) -> Path:
    return ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION), verify=Verify.FULL)
