"""The first stage, trained and kept as an artifact."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import Histories, Holdout, Scores
from index.faiss_index import FlatIndex
from pipeline.distil import distil_retriever, untaught
from pipeline.engine import HERE, Engine
from pipeline.memory import less_for_reading, less_for_towers, memory_for
from pipeline.run_log import RunLog
from pipeline.workspace import FitKind, Workspace
from recommend.ledger import LEDGER, Spent, add_to_ledger
from retrieval.distributed import ALONE, Team
from retrieval.encode import EncoderConfig, Reading, load_encoder, reader
from retrieval.finetune import FinetuneMethod
from retrieval.fit import FittedRetriever, fit_retriever
from retrieval.folder import load_retriever, load_vectors, read_card, read_recipe, save_retriever, save_vectors
from retrieval.retriever import Retriever, RetrieverConfig
from retrieval.trackers import TrackerConfig, told_to, tracker
from store.artifacts import Verify, artifact_key
from store.assets import ModelSource
from store.checkpoint import Checkpoints
from store.errors import BadInput

UNFINISHED = "unfinished"


def train_seeds(ws: Workspace, *, seeds: int, team: Team, log: RunLog, force: bool = False) -> list[str]:
    """Trains from several seeds, the config's first, and tells what their fused lists reach; returns the keys.

    The first is the run's own; the others stay beside it as artifacts, for whoever asks how much is chance.
    """
    keys, figures = [], []
    for offset in range(seeds):
        train = ws.config.retriever.train
        seeded = train.model_copy(update={"seed": train.seed + offset})
        retriever = ws.config.retriever.model_copy(update={"train": seeded})
        part = replace(ws, config=ws.config.model_copy(update={"retriever": retriever}))
        keys.append(train_retriever(part, log=log, force=force, team=team))
        figures.append(read_card(ws.run.artifact("retriever", keys[-1])).fused_ndcg10)
    if seeds > 1 and team.leads:
        spread = {"mean": float(np.mean(figures)), "lowest": min(figures), "highest": max(figures)}
        log.record({"event": "seeds", "validation_ndcg@10": figures, **spread})
    return keys


def train_retriever(
    ws: Workspace, *, log: RunLog, fit: FitKind = FitKind.EVALUATION, force: bool = False, team: Team = ALONE
) -> str:
    """Trains unless exactly this retriever is already there; returns its key.

    Of a team only the leader locks the run and writes to it.
    """
    key = ws.retriever_key(fit)
    with ws.run.work() if team.leads else nullcontext():
        if team.from_leader(lambda: float(_is_whole(ws, fit) and not force)):
            log.say(f"the retriever of these settings and data is already made ({key}); --force trains it again")
            return key
        if team.leads:
            base_text_vectors(ws, log=log)
            if force:
                forget_unfinished(ws, fit)
        team.wait()
        started = time.monotonic()
        if ws.config.retriever.distil.teacher is not None:
            return _taught(ws, fit=fit, log=log, team=team)
        fitted = _fit(ws, base_text_vectors(ws, log=log), fit=fit, log=log, team=team)
        if not team.leads:
            team.wait()
            return key
        vectors_key = _text_vectors_key(ws)
        if fitted.encoder is not None:
            vectors_key = ws.run.write_artifact(
                "text_vectors",
                {"retriever": key, "fit": fit.value},
                lambda folder: save_vectors(folder, fitted.text_vectors),
            )
        made = ws.run.write_artifact(
            "retriever",
            ws.retriever_made_from(fit),
            lambda folder: save_retriever(folder, fitted, text_vectors=vectors_key),
            follows=ws.follows("retriever", fit),
        )
        forget_unfinished(ws, fit)
        _put_down(ws, started, fitted.records)
        team.wait()
    log.record({"event": "retriever", "key": made, "fit": fit.value})
    return made


def forget_unfinished(ws: Workspace, fit: FitKind) -> None:
    """Removes the checkpoints of trainings of this fit's retriever, and of nothing else."""
    folder = ws.run.root / UNFINISHED
    for own in folder.glob(f"{fit.value}-*"):
        shutil.rmtree(own, ignore_errors=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _put_down(ws: Workspace, started: float, records: Sequence[Mapping[str, Any]]) -> None:
    """Puts a training that began at `started` into the run's ledger."""
    # A training that was gone on with has taken longer than this command.
    minutes = max((time.monotonic() - started) / 60, sum(record["minutes"] for record in records))
    add_to_ledger(ws.run.root / LEDGER, Spent(trainings=1, training_minutes=minutes))


def _taught(ws: Workspace, *, fit: FitKind, log: RunLog, team: Team) -> str:
    """The retriever without a teacher, made where it is missing, and its user towers taught; returns the key."""
    base = untaught(ws)
    train_retriever(base, log=log, fit=fit, team=team)
    if team.leads:
        started = time.monotonic()
        made = distil_retriever(ws, open_retriever(base, fit), fitted_on(ws, fit), fit=fit, log=log)
        _put_down(ws, started, ())
        log.record({"event": "retriever", "key": made, "fit": fit.value})
    team.wait()
    return ws.retriever_key(fit)


def _is_whole(ws: Workspace, fit: FitKind) -> bool:
    """Whether a retriever is there with the text vectors it was trained on, by what the evaluation fit chose."""
    key = ws.retriever_key(fit)
    if not ws.run.has("retriever", key) or not ws.is_current("retriever", fit):
        return False
    return ws.run.has("text_vectors", read_card(ws.run.artifact("retriever", key)).text_vectors)


def read_catalog(ws: Workspace, *, log: RunLog, engine: Engine) -> None:
    """Lets an engine read the catalog's texts, so that the training finds their vectors made."""
    with ws.run.work():
        base_text_vectors(ws, log=log, engine=engine)


def base_text_vectors(ws: Workspace, *, log: RunLog, engine: Engine = HERE) -> Scores:
    """(N, E) float32 of the catalog's texts by the untuned encoder, made once for each catalog and encoder.

    Vectors that the catalog came with take their place.
    """
    key = _text_vectors_key(ws)
    given = ws.dataset.catalog.vectors
    if given is not None and not ws.run.has("text_vectors", key):
        ws.run.write_artifact("text_vectors", ws.text_vectors_made_from(), lambda folder: save_vectors(folder, given))
    if not ws.run.has("text_vectors", key):
        settings, reading = ws.config.retriever.encoder, Reading.of(ws.dataset.catalog.texts)
        log.say(f"reading {len(ws.dataset.catalog):,} item texts with {settings.model}")
        with memory_for("reading the catalog", less_for_reading(ws.config)):
            read = engine.made(partial(_text_reader, ws.encoder, settings, len(reading.distinct)), reading.chunks)
            vectors = reading.vectors(read, settings, progress=lambda done, of: log.say(f"  {done:,} of {of:,} texts"))
        ws.run.write_artifact("text_vectors", ws.text_vectors_made_from(), lambda folder: save_vectors(folder, vectors))
    return load_vectors(ws.run.artifact("text_vectors", key, verify=Verify.FULL))


def _text_reader(source: ModelSource, settings: EncoderConfig, texts: int) -> Callable[[list[str]], Scores]:
    """What reads chunks of a catalog of so many different texts, with the untuned encoder."""
    return reader(load_encoder(source.path_or_id, settings, revision=source.revision), texts, settings)


def open_retriever(ws: Workspace, fit: FitKind) -> Retriever:
    """The retriever of this workspace with a flat index made on the spot, for use before one is published."""
    folder = ws.run.artifact("retriever", ws.retriever_key(fit), verify=Verify.FULL)
    vectors = load_vectors(ws.run.artifact("text_vectors", read_card(folder).text_vectors, verify=Verify.FULL))
    return load_retriever(folder, texts=ws.dataset.catalog.texts, text_vectors=vectors, index=FlatIndex)


def _fit(ws: Workspace, vectors: Scores, *, fit: FitKind, log: RunLog, team: Team) -> FittedRetriever:
    settings = ws.config.retriever
    if ws.dataset.catalog.vectors is not None:
        _check_needs_no_encoder(settings)

    def encoder(reading: EncoderConfig) -> Any:
        return load_encoder(ws.encoder.path_or_id, reading, revision=ws.encoder.revision)

    train, validation, recipe = ws.split.train, ws.selectors, None
    if fit is not FitKind.EVALUATION:
        train = fitted_on(ws, fit)
        validation, recipe = nobody(train), read_recipe(evaluation_folder(ws))
    tracking = settings.train.tracking if team.leads else TrackerConfig()
    made_from = ws.retriever_made_from(fit)
    own = fit is FitKind.EVALUATION
    # Settings under the names by which a user sets them: a refusal to go on tells which one was changed.
    belongs_to = {**made_from, "retriever": made_from["config"]}
    del belongs_to["config"]
    if not own:
        belongs_to["follows"] = ws.follows("retriever", fit)
    with (
        tracker(tracking, ws.run.root, name=ws.retriever_key(fit), settings=made_from) as curves,
        memory_for("training the towers", less_for_towers(ws.config)),
    ):
        return fit_retriever(
            train,
            ws.dataset.catalog,
            vectors,
            validation=validation,
            config=settings,
            build_index=FlatIndex,
            load_encoder=encoder,
            log=told_to(log.record, curves) if team.leads else lambda entry: None,
            learners=ws.learners if own else None,
            recipe=recipe,
            checkpoints=lambda name: Checkpoints(
                ws.run.root / UNFINISHED / f"{fit.value}-{name}",
                belongs_to,
                config=settings.train.checkpoint,
                restart="start anew with 'train-retriever --force'" if own else None,
            ),
            team=team,
            say=log.say if team.leads else lambda line: None,
        )


def _check_needs_no_encoder(settings: RetrieverConfig) -> None:
    """Raises BadInput where item vectors were given in the catalog, but a setting needs the encoder that read it."""
    faults = []
    if settings.finetune.method is not FinetuneMethod.FROZEN:
        faults.append(f"retriever.finetune.method is {settings.finetune.method}: set it to frozen")
    if settings.text.copies:
        faults.append(f"retriever.text.copies is {settings.text.copies}: set it to 0")
    if faults:
        where = "the item vectors were given in the catalog (--map vector), so there is no encoder behind them"
        raise BadInput.of(faults, where)


def fitted_on(ws: Workspace, fit: FitKind) -> Histories:
    """What a retriever of this fit learns from, a list for every user."""
    if fit is FitKind.EARLIER:
        return ws.split.train.without_last(ws.config.reranker.earlier_targets)
    if fit is FitKind.BEFORE_TEST and ws.split.before_test is not None:
        return ws.split.before_test
    return ws.dataset.interactions if fit is FitKind.FINAL else ws.split.train


def evaluation_folder(ws: Workspace) -> Path:
    """The folder of the evaluation fit's retriever.

    Raises:
        MissingStep: when it has not been trained.
    """
    return ws.run.artifact("retriever", ws.retriever_key(FitKind.EVALUATION), verify=Verify.FULL)


def nobody(like: Histories) -> Holdout:
    """A validation part without users."""
    none = np.zeros(0, dtype=np.int64)
    return Holdout("validation", none, like.take(none), like.take(none))


def _text_vectors_key(ws: Workspace) -> str:
    return artifact_key("text_vectors", ws.text_vectors_made_from())
