"""What a request may cost, decided before the forward pass: fewer candidates, then less history, then none at all."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rerank.packing import Prompt, split_long
from rerank.spans import PrefixStates

LEAST_DEPTH = 2
"""Below so many candidates there is nothing to reorder."""


class Budget(BaseModel):
    """Caps of one request; None: no cap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(None, ge=0, description="tokens that may go through the model")
    max_ms: float | None = Field(None, ge=0, description="milliseconds that the whole request may take")


class Cut(StrEnum):
    """What a budget did to a request."""

    NONE = "none"
    DEPTH = "fewer candidates"
    HISTORY = "less history"
    PASSED = "retrieval order"
    GATED = "the gate expects no gain"


class Cap(StrEnum):
    """Which cap was the narrowest."""

    NONE = "none"
    TOKENS = "max_tokens"
    TIME = "max_ms"
    DAY = "max_tokens_per_day"


@dataclass(frozen=True)
class Plan:
    """What is read of a request.

    Attributes:
        prompt: with as many candidates, from the top, as may be read; none where retrieval order is passed through.
        cut: what was left out.
        cap: because of what.
    """

    prompt: Prompt
    cut: Cut = Cut.NONE
    cap: Cap = Cap.NONE

    @property
    def depth(self) -> int:
        """Candidates that are read."""
        return len(self.prompt.candidates)


@dataclass(frozen=True)
class Wanted:
    """What one request of a call would make the model read, and what it may cost.

    Attributes:
        limits: cap → tokens that may go through the model.
        max_ms: that its answer may take from the call's beginning; None: no cap.
        remembered: the states of its prefix, held until they are used, so that nothing read before it takes them away.
    """

    prompt: Prompt
    limits: Mapping[Cap, int]
    max_ms: float | None = None
    remembered: PrefixStates | None = None


class Pace:
    """How many tokens a model reads in how many milliseconds, learnt from what it did last.

    ms = base + slope · tokens by least squares over the last observations; a forecast is raised by the factor that
    99 of 100 of them stayed below, since a cap that holds on average holds for half of the requests.
    """

    LEAST, MOST = 8, 256
    QUANTILE = 0.99

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=self.MOST)
        self._fit: tuple[float, float, float] | None = None

    def observe(self, tokens: int, ms: float) -> None:
        """One forward pass."""
        self._seen.append((float(tokens), ms))
        self._fit = None

    @property
    def known(self) -> bool:
        """Whether enough was seen for a forecast."""
        return len(self._seen) >= self.LEAST

    def tokens_within(self, ms: float) -> int:
        """The most tokens that are read within `ms`, 99 times of 100; 0 while too little was seen to tell."""
        if not self.known:
            return 0
        if self._fit is None:
            self._fit = self._fitted()
        base, slope, factor = self._fit
        return max(0, int((ms / factor - base) / slope))

    def _fitted(self) -> tuple[float, float, float]:
        tokens, ms = np.array(self._seen).T
        spread = tokens.std()
        slope = float(np.cov(tokens, ms, bias=True)[0, 1] / spread**2) if spread > 0 else 0.0
        mean = float(ms.mean() / max(tokens.mean(), 1.0))
        # Where all requests were alike, or longer ones were no slower, everything is put down to the tokens.
        slope = slope if 0 < slope <= mean else mean
        base = max(0.0, float((ms - slope * tokens).mean()))
        forecast = np.maximum(base + slope * tokens, 1e-9)
        return base, max(slope, 1e-9), max(1.0, float(np.quantile(ms / forecast, self.QUANTILE)))


def plan_together(wanted: Sequence[Wanted], pace: Pace, *, behind_ms: float, row_tokens: int) -> list[Plan]:
    """What is read for each request of one call, whose answers come together, when all of it is read.

    The call may take what the shortest cap of time has left. Requests without such a cap are read whole; the others
    divide the rest, each as much as it needs where all of them need less than an equal share.

    Args:
        behind_ms: of the call so far.
        row_tokens: of one forward pass; each reads the prefix again.
    """
    caps = [one.max_ms for one in wanted if one.max_ms is not None]
    left = pace.tokens_within(min(caps) - behind_ms) if caps else 0
    plans: dict[int, Plan] = {}

    def timed_last_the_small_ones_first(place: int) -> tuple[bool, int]:
        one = wanted[place]
        return one.max_ms is not None, one.prompt.tokens if one.prompt.candidates else 0

    for place in sorted(range(len(wanted)), key=timed_last_the_small_ones_first):
        one, limits = wanted[place], dict(wanted[place].limits)
        if one.max_ms is not None:
            limits[Cap.TIME] = max(0, left) // (len(wanted) - len(plans))
        plans[place] = _planned(one, limits, row_tokens)
        left -= _fed(plans[place].prompt, one.remembered, row_tokens)
    return [plans[place] for place in range(len(wanted))]


def _planned(one: Wanted, limits: dict[Cap, int], row_tokens: int) -> Plan:
    remembered = one.remembered is not None
    made = plan(one.prompt, limits, remembered=remembered)
    # Over several rows each reads the history again; a shorter prompt takes no more rows.
    again = _fed(made.prompt, None, row_tokens) - made.prompt.tokens if made.depth else 0
    return plan(one.prompt, {cap: limit - again for cap, limit in limits.items()}, remembered=remembered)


def _fed(prompt: Prompt, remembered: PrefixStates | None, row_tokens: int) -> int:
    """Tokens that go through the model."""
    rows = split_long(prompt, max_tokens=row_tokens) if prompt.candidates else []
    known = len(prompt.prefix) if remembered is not None else 0
    return sum(row.tokens - known for row in rows)


def plan(prompt: Prompt, limits: dict[Cap, int], *, remembered: bool = False) -> Plan:
    """The most of a prompt that fits into the narrowest of some limits.

    First the last candidates go. Where fewer than two would be left, the oldest items of the history go, too, in whole
    blocks, so that prefixes come back and are remembered; one by one where not even the last block fits. Where that
    does not help nothing is read.

    Args:
        prompt: with its candidates in retrieval order.
        limits: cap → tokens that may go through the model.
        remembered: whether the prefix is, so that it costs nothing.
    """
    if not limits or not prompt.candidates:
        return Plan(prompt)
    cap = min(limits, key=lambda name: limits[name])
    limit = limits[cap]
    lengths = np.cumsum([len(candidate) for candidate in prompt.candidates])

    def depth_behind(prefix: int) -> int:
        return int(np.searchsorted(lengths, limit - prefix, side="right"))

    least = min(LEAST_DEPTH, len(lengths))
    depth = depth_behind(0 if remembered else len(prompt.prefix))
    if depth >= len(lengths):
        return Plan(prompt)
    if depth >= least:
        return Plan(replace(prompt, candidates=prompt.candidates[:depth]), Cut.DEPTH, cap)
    if not remembered:
        for kept in _shorter(1 + int(prompt.ages.max(initial=0)), prompt.block_items):
            shorter = without_older(prompt, kept)
            depth = depth_behind(len(shorter.prefix))
            if depth >= least:
                return Plan(replace(shorter, candidates=prompt.candidates[:depth]), Cut.HISTORY, cap)
    return Plan(replace(prompt, candidates=()), Cut.PASSED, cap)


def _shorter(items: int, block: int) -> list[int]:
    """How many of the most recent of so many items may be kept, the most first."""
    whole = range(items - block, 0, -block)
    return [*whole, *range((whole[-1] if whole else items) - 1, 0, -1)]


def without_older(prompt: Prompt, age: int) -> Prompt:
    """The prompt without the items of its history that are `age` or more steps back; the words around them stay."""
    kept = prompt.ages < age
    return replace(prompt, prefix=prompt.prefix[kept], ages=prompt.ages[kept])
