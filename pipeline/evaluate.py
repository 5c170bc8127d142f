"""Both stages, each part of the first, and every baseline on the same held-out users; one report."""

import hashlib
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import numpy as np

from baselines.base import Skipped
from baselines.lineup import fit_all
from data.schema import Histories, Holdout
from data.split import HeldOut, SplitKind
from data.vocabulary import Vocabulary
from eval.protocol import CatalogStats, candidate_recall, evaluate
from eval.report import write_report
from eval.results import Comparison, Fit, GatePoint, Report, Role, System
from pipeline.contributions import TOWERS, JudgedSources, judge_sources
from pipeline.frontier import measure_frontier
from pipeline.memory import less_for_lists, memory_for
from pipeline.run_log import RunLog
from pipeline.train_retriever import (
    base_text_vectors,
    evaluation_folder,
    fitted_on,
    open_retriever,
    train_retriever,
)
from pipeline.workspace import FitKind, Workspace
from recommend.ledger import LEDGER, Ledger, Prices
from recommend.recommender import Recommender
from recommend.release import Stages, load_reranker
from recommend.second_stage import Ranked
from retrieval.folder import read_card
from retrieval.retriever import TEXT, TRANSITIONS
from store.errors import BadInput

TANDEM, RETRIEVAL = "tandem", "retrieval only"
COST_OF_1000 = "cost of 1,000 recommendations"
DEPTH = 100
"""How many places of every list are judged."""


class Part(StrEnum):
    """What is looked at."""

    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation looks at.

    Attributes:
        users: how many users, drawn by a hash of their id; 0: all.
        rerank: ask the reranker, if there is one.
        baselines: fit and judge them, too.
        frontier: measure every setting of the second stage, too.
    """

    part: Part = Part.VALIDATION
    users: int = 0
    rerank: bool = True
    baselines: bool = True
    frontier: bool = False


def evaluate_run(ws: Workspace, options: EvaluationOptions, *, log: RunLog) -> tuple[Report, Path]:
    """Judges the evaluation fit and writes reports/<part>/; returns the report and the page's path.

    Raises:
        MissingStep: when the retriever has not been trained.
        BadInput: when the part has no users, as the test part of data whose test items were taken away.
        RunBusy: when another command writes to the run; told at once, not after the work.
    """
    with ws.run.work():
        report = _report(ws, options, log)
        page = write_report(ws.run.reports_dir / options.part, report)
    log.record({"event": "evaluated", "part": str(options.part), "ndcg@10": _main(report.systems)})
    return report, page


def _report(ws: Workspace, options: EvaluationOptions, log: RunLog) -> Report:
    asked = _asked(ws, options)
    recommender = evaluation_recommender(ws, options.part, with_reranker=options.rerank, log=log)
    fewer = [f"--users {max(1, len(asked) // 2)}", *(["--no-baselines"] if options.baselines else [])]
    with memory_for("evaluating", less_for_lists(ws.config, recommender, " ".join(fewer))):
        return _judged(ws, options, asked, recommender, log)


def _judged(ws: Workspace, options: EvaluationOptions, asked: Holdout, recommender: Recommender, log: RunLog) -> Report:
    learnt = fitted_on(ws, fit_for(ws, options.part))
    stats = CatalogStats.of(learnt, len(ws.dataset.catalog))
    log.say(f"{options.part}: {len(asked):,} users, the whole catalog of {len(stats):,} items")
    started = time.perf_counter()
    # Asked for as `recommend --all` asks: a deeper union would be judged, but never served.
    served = max(min(DEPTH, len(stats)), recommender.config.candidates)
    retrieved = recommender.retrieve(asked.histories, served)
    retrieval_ms = (time.perf_counter() - started) * 1000
    started = time.perf_counter()
    ranked = recommender.rerank(retrieved, asked.histories)
    rerank_ms = (time.perf_counter() - started) * 1000
    ranked = replace(ranked, retrieval_ms=retrieval_ms, rerank_ms=rerank_ms)
    log.say("judging each source of the first stage")
    exclude_known = recommender.config.exclude_known
    sources = judge_sources(
        recommender.retriever,
        asked,
        validation=ws.selectors,
        served=served,
        depth=DEPTH,
        exclude_known=exclude_known,
        as_fitted=open_retriever(ws, FitKind.EVALUATION)
        if fit_for(ws, options.part) is not FitKind.EVALUATION
        else None,
    )
    systems = _our_systems(recommender, ranked, sources, asked, stats)
    left_out: dict[str, str] = {}
    if options.baselines:
        again = ws.split.before_test if fit_for(ws, options.part) is FitKind.BEFORE_TEST else None
        judged, left_out = _judged_baselines(ws, asked, stats, exclude_known=exclude_known, again=again, log=log)
        systems += judged
    return Report(
        title=f"{ws.run.root.name}: {options.part}",
        fit=Fit.EVALUATION,
        split=_split_in_words(ws, options, asked),
        user_ids=[ws.dataset.users.ids[row] for row in asked.user_rows],
        systems=systems,
        comparisons=_comparisons(systems),
        contributions=sources.contributions,
        counts=_counts(ws, asked),
        ceiling=candidate_recall(ranked.retrieved.head(DEPTH), asked.targets),
        cost=_cost(ws, ranked),
        left_out=left_out,
        gate=_gate(recommender),
        frontier=measure_frontier(ws, recommender, asked, log=log) if options.frontier else None,
        notes=_notes(ws, recommender, options),
        provenance=_provenance(ws),
    )


def fit_for(ws: Workspace, part: Part) -> FitKind:
    """Which fit of the retriever a part is asked of.

    The test of a temporal split comes a whole validation part after the training part ends. Nobody in service would
    be that far behind: everything before it is learnt once more, by us and by the baselines, with the settings that
    validation chose.
    """
    return FitKind.BEFORE_TEST if part is Part.TEST and ws.split.before_test is not None else FitKind.EVALUATION


def evaluation_recommender(ws: Workspace, part: Part, *, with_reranker: bool, log: RunLog) -> Recommender:
    """Both stages as `evaluation_stages` gives them, without the day's cap on tokens: figures are of what was asked."""
    config = ws.config.recommending.model_copy(update={"max_tokens_per_day": None})
    return Recommender(evaluation_stages(ws, part, with_reranker=with_reranker, log=log), config)


def evaluation_stages(ws: Workspace, part: Part, *, with_reranker: bool, log: RunLog) -> Stages:
    """Both stages as they stand when a part is asked, whatever is published; fits the first stage where it has to."""
    fit = fit_for(ws, part)
    if fit is not FitKind.EVALUATION:
        train_retriever(ws, log=log, fit=fit)
    reranker, fusion, gate = None, None, None
    if with_reranker and ws.has_reranker(FitKind.EVALUATION):
        reranker, fusion, gate = load_reranker(ws.run, ws.reranker_key(FitKind.EVALUATION))
    return Stages(
        dataset=ws.dataset,
        retriever=open_retriever(ws, fit),
        reranker=reranker,
        fusion=fusion,
        gate=gate,
        release=ws.run.release(),
        fit=FitKind.EVALUATION,
        prompt=None if reranker is None else reranker.config.prompt,
    )


def drawn_by_hash(known: Vocabulary, asked: Holdout, users: int) -> Holdout:
    """At most `users` of those asked, by the smallest SHA-256 of their id; 0 keeps all."""
    if not users or users >= len(asked):
        return asked
    digests = [hashlib.sha256(b"drawn " + known.ids[row].encode()).digest() for row in asked.user_rows]
    return asked.take(np.sort(np.array(sorted(range(len(digests)), key=digests.__getitem__)[:users])))


def _asked(ws: Workspace, options: EvaluationOptions) -> Holdout:
    # Group A's validation items taught the reranker: only group B can still be asked about them.
    asked = ws.selectors if options.part is Part.VALIDATION else ws.split.test
    if not len(asked):
        elsewhere = ws.selectors if options.part is Part.TEST else ws.split.test
        other = Part.VALIDATION if options.part is Part.TEST else Part.TEST
        way_out = f"try --split {other}" if len(elsewhere) else "give more interactions of some users"
        raise BadInput(
            f"the {options.part} part of {ws.run.root} has nobody to ask: {_why_nobody(ws, options.part)}; {way_out}"
        )
    return drawn_by_hash(ws.dataset.users, asked, options.users)


def _why_nobody(ws: Workspace, part: Part) -> str:
    split = ws.config.split
    taken_away = split.holdout is HeldOut.VALIDATION
    if part is Part.TEST and taken_away:
        return "its test items were taken away beforehand (split.holdout)"
    others = part is Part.VALIDATION and len(ws.split.validation)
    who = "no user of group B, 20 % of users by hash," if others else "no user"
    if split.kind is SplitKind.LEAVE_ONE_OUT:
        needed = 2 if part is Part.TEST or taken_away else 3
        return f"{who} has the {needed} interactions that it takes"
    return f"{who} of whom {split.min_history} or more interactions are known took something new in it"


def _our_systems(
    recommender: Recommender, ranked: Ranked, sources: JudgedSources, asked: Holdout, stats: CatalogStats
) -> list[System]:
    systems = []
    reranked, retrieved = ranked.reranked.head(DEPTH), ranked.retrieved.head(DEPTH)
    if recommender.second is not None:
        words = f"both stages, {ranked.depth} reranked" if ranked.depth else "both stages; the second has weight 0"
        systems.append(System(TANDEM, Role.OURS, evaluate(reranked, asked, stats), words))
    role = Role.STAGE if systems else Role.OURS
    fused = "all sources fused" + (", and a network over them" if recommender.retriever.network is not None else "")
    systems.append(System(RETRIEVAL, role, evaluate(retrieved, asked, stats), fused))
    kinds = dict.fromkeys(map(str, recommender.retriever.towers.kinds), "its part of the search")
    notes = {TOWERS: "one search in the index", **kinds, TRANSITIONS: "counts alone", TEXT: "nothing trained"}
    systems += [
        System(f"{name} alone", Role.STAGE, evaluate(sources.alone[name], asked, stats), note)
        for name, note in notes.items()
        if name in sources.alone
    ]
    return systems


def _judged_baselines(
    ws: Workspace,
    asked: Holdout,
    stats: CatalogStats,
    *,
    exclude_known: bool,
    again: Histories | None,
    log: RunLog,
) -> tuple[list[System], dict[str, str]]:
    """Those that could be fitted, and why the others could not."""
    log.say("fitting the baselines, their settings chosen on group B's validation items")
    fitted = fit_all(
        ws.split.train,
        ws.selectors,
        len(ws.dataset.catalog),
        text_vectors=base_text_vectors(ws, log=log),
        config=ws.config.baselines,
        again=again,
        log=log.say,
    )
    systems, left_out = [], {}
    for baseline in fitted:
        if isinstance(baseline, Skipped):
            left_out[baseline.name] = baseline.reason
            continue
        log.say(f"judging {baseline.name}")
        found = baseline.candidates(asked.histories, DEPTH, exclude_known=exclude_known)
        systems.append(System(baseline.name, Role.BASELINE, evaluate(found, asked, stats)))
    return systems, left_out


def _comparisons(systems: list[System]) -> list[Comparison]:
    by_name = {system.name: system for system in systems}
    ours = by_name.get(TANDEM, by_name[RETRIEVAL])
    baselines = [system for system in systems if system.role is Role.BASELINE]
    found = []
    if baselines:
        # The best on the very users that are judged: the hardest one to beat.
        best = max(baselines, key=lambda system: system.evaluation.metrics["ndcg@10"])
        found.append(Comparison.of(ours, best, question="Is it better than the best baseline?"))
    if ours.name == TANDEM:
        found.append(Comparison.of(ours, by_name[RETRIEVAL], question="Does reranking help?"))
    return found


def _gate(recommender: Recommender) -> list[GatePoint]:
    if recommender.second is None or recommender.second.gate is None:
        return []
    return [GatePoint(point.share, point.gain, point.random) for point in recommender.second.gate.curve]


def _split_in_words(ws: Workspace, options: EvaluationOptions, asked: Holdout) -> str:
    if ws.config.split.kind is SplitKind.LEAVE_ONE_OUT:
        words = {
            Part.VALIDATION: "leave one out: the item before each user's last, asked of group B, 20 % of users by hash",
            Part.TEST: "leave one out: each user's last item",
        }[options.part]
    elif ws.config.split.kind is SplitKind.TEMPORAL:
        words = "global temporal: everything that users with a history took after one moment"
        if options.part is Part.TEST:
            words += ", all systems fitted on everything before it"
    else:
        words = f"cold items: what users took of items that are unknown in training, those for {options.part}"
    everybody = ws.selectors if options.part is Part.VALIDATION else ws.split.test
    return words + (f"; {len(asked):,} users drawn by hash" if len(asked) < len(everybody) else "")


def _counts(ws: Workspace, asked: Holdout) -> dict[str, int]:
    return {
        "users": len(ws.dataset.users),
        "items": len(ws.dataset.catalog),
        "interactions": len(ws.dataset.interactions.item_rows),
        "training interactions": len(ws.split.train.item_rows),
        "users asked": len(asked),
        "targets": len(asked.targets.item_rows),
    }


def _cost(ws: Workspace, ranked: Ranked) -> dict[str, float | int | str]:
    spent, prices = ranked.spent, ws.config.recommend.prices
    training = Ledger.read(ws.run.root / LEDGER).total
    cost: dict[str, float | int | str] = {
        "candidates reranked per user": ranked.depth,
        "prompt tokens per user": round(spent.prompt_tokens / spent.requests, 1),
        "users whose candidates were all scored alike (retrieval order stays)": spent.tied,
        "retrieval, ms per user, in batches": round(spent.retrieval_ms / spent.requests, 2),
        "reranking, ms per user, in batches": round(spent.rerank_ms / spent.requests, 2),
        "trainings of this run so far, minutes": round(training.training_minutes, 2),
        "trainings of this run so far, tokens of the reranker's lists": training.training_tokens,
    }
    if prices == Prices():
        return {**cost, COST_OF_1000: "no prices are set (recommend.prices)"}
    return {
        **cost,
        COST_OF_1000: spent.cost_of_1000(prices),
        "cost of the trainings so far": training.training_cost(prices),
    }


def _notes(ws: Workspace, recommender: Recommender, options: EvaluationOptions) -> list[str]:
    notes = [found.words for found in read_card(evaluation_folder(ws)).own_weights]
    if recommender.second is None:
        notes.append(
            "Without a reranker: "
            + ("it was not asked." if not options.rerank else "none of these settings has been trained.")
        )
    elif not recommender.reranker_helps:
        notes.append(
            "The reranker did not help on validation, so its weight is 0 and it is not run: no cost, no change."
        )
    else:
        notes.append(
            "The reranker has a weight since it gained more than one standard error by cross-validation over group B: "
            "enough to choose by, and no proof."
        )
    if ws.run.release().retriever == ws.retriever_key(FitKind.FINAL):
        notes.append(
            "What is published is the final fit; these figures are of the evaluation fit with the same settings."
        )
    return notes


def _provenance(ws: Workspace) -> dict[str, str]:
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "retriever": ws.retriever_key(FitKind.EVALUATION),
        "data": ws.fingerprint,
    }


def _main(systems: Sequence[System]) -> dict[str, float]:
    return {system.name: round(system.evaluation.metrics["ndcg@10"], 5) for system in systems}
