"""What an evaluation found out, as one frozen value: the report is made from it and from nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from eval.frontier import Frontier
from eval.protocol import Evaluation
from eval.significance import Interval, PairedTest, bootstrap_mean, paired_bootstrap

MAIN_METRIC = "ndcg@10"
"""What systems are ordered and compared by unless said otherwise."""


class Fit(StrEnum):
    """What the judged models were fitted on."""

    EVALUATION = "evaluation fit"
    FINAL = "final fit"


class Role(StrEnum):
    """What a system is in the comparison: the whole of ours, a part of it, or somebody else's idea."""

    OURS = "ours"
    STAGE = "stage"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class System:
    """One judged system; `note` says in a few words what it is."""

    name: str
    role: Role
    evaluation: Evaluation
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired test between two systems of the report, and the question that it answers."""

    ours: str
    theirs: str
    metric: str
    test: PairedTest
    question: str = ""

    @classmethod
    def of(cls, ours: System, theirs: System, *, metric: str = MAIN_METRIC, question: str = "", seed: int = 0) -> Self:
        """Tested now, over the users of both evaluations, which must be the same in the same order."""
        values, others = ours.evaluation.per_user[metric], theirs.evaluation.per_user[metric]
        test = paired_bootstrap(values, others, seed=seed)
        return cls(ours.name, theirs.name, metric, test, question or f"Is {ours.name} better than {theirs.name}?")


@dataclass(frozen=True, slots=True)
class SliceContribution:
    """What a source is worth in a slice of the holdout, by the main metric.

    Attributes:
        users: who have a target in it.
        alone: in the order of the source.
        ours: in that of all sources together, weighed anew.
        theirs: in that of all but this one, weighed anew.
    """

    users: int
    alone: float
    ours: float
    theirs: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one source of candidates is worth by the main metric.

    Attributes:
        source: its name, or that of a group of sources.
        alone: the metric of the candidates in its own order.
        test: all sources together against all but this one, both weighed anew.
        slices: the same by cold items and by history lengths, see `eval.slices`.
    """

    source: str
    alone: float
    test: PairedTest
    slices: Mapping[str, SliceContribution] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GatePoint:
    """What a share of reranked users keeps of the gain of reranking everybody, on validation.

    Attributes:
        share: of users reranked, those whom the gate expects to gain most.
        gain: in NDCG@10, mean over all users.
        random: the same where chance chooses the share.
    """

    share: float
    gain: float
    random: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a reader is told.

    Attributes:
        title: of the page, such as the run's name and its data.
        fit: which kind of fit the figures describe.
        split: in words, how the holdout was made, and who was drawn from it if not everybody.
        user_ids: n public ids in the order of every `per_user` array.
        systems: judged on the same users, names distinct.
        comparisons: the first is the one that the page leads with.
        contributions: of the sources of the first stage.
        counts: of the data, such as users, items, training interactions, targets.
        ceiling: depth → recall of the candidates, which no reranker of so many can exceed.
        cost: what it took, in words with the unit → figure.
        left_out: system → why it was not run.
        gate: by rising share, where there is a reranker with a gate.
        frontier: what every setting of the second stage gains and takes; None where none were tried.
        notes: whatever else a sceptic should know.
        provenance: command, commit, machine, date, release.
    """

    title: str
    fit: Fit
    split: str
    user_ids: Sequence[str]
    systems: Sequence[System]
    comparisons: Sequence[Comparison] = ()
    contributions: Sequence[Contribution] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    ceiling: Mapping[int, float] = field(default_factory=dict)
    cost: Mapping[str, float | int | str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    gate: Sequence[GatePoint] = ()
    frontier: Frontier | None = None
    notes: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = [*_faults_of_systems(self), *_faults_of_comparisons(self)]
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def part(self) -> str:
        """ "validation" or "test"."""
        return self.systems[0].evaluation.part

    @property
    def ranked(self) -> list[System]:
        """The systems by the main metric, best first; ties in the order given."""
        return sorted(self.systems, key=lambda system: -system.evaluation.metrics[MAIN_METRIC])

    @property
    def in_focus(self) -> list[System]:
        """Those that the comparisons are about, in their order; without comparisons the best one."""
        names = [name for found in self.comparisons for name in (found.ours, found.theirs)]
        by_name = {system.name: system for system in self.systems}
        return [by_name[name] for name in dict.fromkeys(names)] or self.ranked[:1]

    def intervals(self) -> dict[str, Interval]:
        """System → the main metric with its bootstrap interval over users."""
        return {system.name: bootstrap_mean(system.evaluation.per_user[MAIN_METRIC]) for system in self.systems}


def _faults_of_systems(report: Report) -> list[str]:
    if not report.systems:
        return ["a report needs at least one system"]
    faults = []
    names = [system.name for system in report.systems]
    if len(set(names)) < len(names):
        faults.append(f"two systems have one name: {names}")
    if len({system.evaluation.part for system in report.systems}) > 1:
        faults.append("some systems were judged on validation and some on test")
    for system in report.systems:
        if system.evaluation.users != len(report.user_ids):
            faults.append(
                f"{system.name} was judged on {system.evaluation.users} users, "
                f"the report is about {len(report.user_ids)}"
            )
        if MAIN_METRIC not in system.evaluation.metrics:
            faults.append(f"{system.name} has no {MAIN_METRIC}: its lists are {system.evaluation.depth} long")
    return faults


def _faults_of_comparisons(report: Report) -> list[str]:
    names = {system.name for system in report.systems}
    return [
        f"a comparison is about {name}, which is not among the systems"
        for found in report.comparisons
        for name in (found.ours, found.theirs)
        if name not in names
    ]
