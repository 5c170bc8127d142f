"""Is one system better than another for the same users, or is it chance? A paired bootstrap over users."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
LEVEL = 0.95

_NUMBERS_AT_ONCE = 4_000_000  # 32 MB of resampled values or weights
_DISTINCT_SHARE = 32  # a multinomial count costs about as much as this many plain draws

Floats = npt.NDArray[np.float64]


class Verdict(StrEnum):
    """What a paired test lets one say."""

    HELPS = "helps"
    NO_EVIDENCE = "no evidence"
    HARMS = "harms"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Ours against theirs over the same users.

    Attributes:
        users: how many users were compared.
        ours, theirs: the two means.
        difference, low, high: ours − theirs, and its percentile interval at `level`.
        relative, relative_low, relative_high: difference / theirs, resampled together; None where theirs
            is 0, in the data or in a resample.
        p_value: two-sided.
        better, worse: users for whom ours is above, and below, theirs.
        verdict: helps or harms where the interval leaves out 0 and enough users differ at all.
    """

    users: int
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    p_value: float
    better: int
    worse: int
    level: float
    verdict: Verdict

    @property
    def differing(self) -> int:
        """Users for whom the two differ."""
        return self.better + self.worse

    @property
    def needed(self) -> int:
        """So many users must differ: of fewer interval and p are not to be believed, and there is no evidence."""
        return _needed(self.level)


def paired_bootstrap(
    ours: Floats, theirs: Floats, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> PairedTest:
    """Compare two systems by one metric, `ours` and `theirs` (n,), user by user.

    Users are resampled with replacement, each with both of their values (Efron and Tibshirani 1993, ch. 13
    and 16): the interval is the percentile interval, p the share of resampled differences, centred on the
    observed one, that lie at least as far from 0 as it does.

    Raises:
        ValueError: when the two differ in shape, are empty, or hold a value that is not finite.
    """
    _refuse(ours, theirs)
    pairs = np.column_stack([ours - theirs, theirs])
    difference, base = pairs.mean(axis=0)
    means = _resampled_means(pairs, draws=draws, rng=np.random.default_rng(seed))  # (draws, 2)
    low, high = _percentiles(means[:, 0], level)
    far = np.abs(means[:, 0] - difference) >= abs(difference) * (1 - 1e-12)
    relative: tuple[float | None, float | None] = (None, None)
    if base > 0 and (means[:, 1] > 0).all():
        relative = _percentiles(means[:, 0] / means[:, 1], level)
    better, worse = int((ours > theirs).sum()), int((ours < theirs).sum())
    return PairedTest(
        users=len(ours),
        ours=float(ours.mean()),
        theirs=float(base),
        difference=float(difference),
        low=low,
        high=high,
        relative=float(difference / base) if base > 0 else None,
        relative_low=relative[0],
        relative_high=relative[1],
        p_value=float((far.sum() + 1) / (draws + 1)),
        better=better,
        worse=worse,
        level=level,
        verdict=_verdict(low, high, differing=better + worse, level=level),
    )


def bootstrap_mean(values: Floats, *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """The mean of `values` (n,) over users with its percentile interval. Raises like `paired_bootstrap`."""
    _refuse(values, values)
    means = _resampled_means(values[:, None], draws=draws, rng=np.random.default_rng(seed))
    return Interval(float(values.mean()), *_percentiles(means[:, 0], level))


def _verdict(low: float, high: float, *, differing: int, level: float) -> Verdict:
    if differing < _needed(level):
        return Verdict.NO_EVIDENCE
    if low > 0:
        return Verdict.HELPS
    return Verdict.HARMS if high < 0 else Verdict.NO_EVIDENCE


def _needed(level: float) -> int:
    # A percentile interval of few differing users is too narrow: four that all gain already leave out 0.
    # So the sign test must be able to reach the level at all: 6 users that differ at 95 %.
    return math.ceil(1 - math.log2(1 - level))


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(rows: Floats, *, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, C): column means of `rows` (n, C), each over n rows drawn with replacement."""
    # Rank metrics take few values: how often each distinct row is drawn is a multinomial count, so that
    # ten thousand draws of 20,000 users cost as much as of the few dozen distinct rows. Same distribution.
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    means = np.empty((draws, rows.shape[1]))
    if len(distinct) * _DISTINCT_SHARE <= len(rows):
        for part in _parts(draws, len(distinct)):
            drawn = rng.multinomial(len(rows), counts / len(rows), size=part.stop - part.start)
            means[part] = drawn @ distinct / len(rows)
        return means
    for part in _parts(draws, len(rows)):
        chosen = rng.integers(0, len(rows), size=(part.stop - part.start, len(rows)))
        for column in range(rows.shape[1]):
            means[part, column] = rows[:, column][chosen].mean(axis=1)
    return means


def _parts(draws: int, width: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_AT_ONCE // max(1, width))
    for start in range(0, draws, step):
        yield slice(start, min(draws, start + step))


def helps(gains: Floats) -> bool:
    """Whether the mean of (B,) gains is more than one standard error above 0: enough to choose by, no proof."""
    return len(gains) > 1 and bool(gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)))


def _refuse(ours: Floats, theirs: Floats) -> None:
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"a paired test needs one value a user from both: {ours.shape} and {theirs.shape}")
    if not len(ours):
        raise ValueError("there is no user to compare")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("a value to compare is not finite")
