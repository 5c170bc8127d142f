"""Who is told how a training goes: the run's log always, TensorBoard or Weights & Biases where wanted, and a person."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from store.atomic import disk_trouble_told
from store.checkpoint import leaves
from store.errors import BadInput, MissingPackage
from store.fingerprint import canonical

Log = Callable[[dict[str, Any]], None]
"""Is told one entry: names and values, numbers among them."""

AXES = ("step", "epoch", "round")
"""What can be told of how far along an entry is; the first that it has is its axis."""

WANDB_TIMEOUT_S = 30.0
"""How long Weights & Biases is given to answer before a training starts."""


class TrackerKind(StrEnum):
    """Where curves are drawn."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


class TrackerConfig(BaseModel):
    """Where the numbers of a training go besides log.jsonl; no part of what it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracker: TrackerKind = Field(
        TrackerKind.NONE, description="none, tensorboard (a folder in the run) or wandb (WANDB_MODE=offline: a folder)"
    )
    project: str = Field("tandem", min_length=1, description="project on Weights & Biases")


def told_to(*logs: Log) -> Log:
    """One log that tells every entry to all of `logs`, in order."""

    def log(entry: dict[str, Any]) -> None:
        for each in logs:
            each(entry)

    return log


@contextmanager
def tracker(config: TrackerConfig, folder: Path, *, name: str, settings: Mapping[str, Any]) -> Iterator[Log]:
    """A log whose entries become curves; open for the time of the block, and written out at its end.

    Args:
        folder: of the run; trackers make folders of their own in it.
        name: of this training among those of the run.
        settings: shown beside the curves, nested.

    Raises:
        MissingPackage: when the tracker is not installed.
        BadInput: when Weights & Biases has no key, or does not answer.
        NoSpace: when the disk is full or refuses the write.
    """
    with _TRACKERS[config.tracker](config, folder, name, canonical(settings)) as log:
        yield log


@contextmanager
def _none(config: TrackerConfig, folder: Path, name: str, settings: Any) -> Iterator[Log]:
    yield lambda entry: None


@contextmanager
def _tensorboard(config: TrackerConfig, folder: Path, name: str, settings: Any) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing(config.tracker) from error
    place = folder / "tensorboard" / name
    with disk_trouble_told(place):
        # Written out often: what a killed training had to tell is what one wants to see.
        writer = SummaryWriter(str(place), flush_secs=10)
        writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in leaves(settings).items()))
    curves = Curves()

    def log(entry: dict[str, Any]) -> None:
        group, at, values = curves.of(entry)
        with disk_trouble_told(place):
            for key, value in values.items():
                writer.add_scalar(f"{group}/{key}", value, at)

    try:
        yield log
    finally:
        with disk_trouble_told(place):
            writer.close()


@contextmanager
def _wandb(config: TrackerConfig, folder: Path, name: str, settings: Any) -> Iterator[Log]:
    try:
        import wandb
    except ImportError as error:
        raise _missing(config.tracker) from error
    # Asked first, since wandb.init waits for somebody to type a key where there is a terminal.
    online = wandb.setup().settings.mode in {"online", "run"}
    if online and not wandb.login(prompt=False, verify=False):
        raise BadInput(
            "Weights & Biases has no API key here: run 'wandb login' once, set WANDB_API_KEY, or keep the curves "
            "on this machine with WANDB_MODE=offline"
        )
    options = {"console": "off", "init_timeout": WANDB_TIMEOUT_S}
    try:
        run = wandb.init(project=config.project, name=name, dir=str(folder), config=settings, settings=options)
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"Weights & Biases refuses ({reason}): set WANDB_MODE=offline, and 'wandb sync' its folder later"
        ) from error
    curves, axes = Curves(), set()

    def log(entry: dict[str, Any]) -> None:
        group, at, values = curves.of(entry)
        if not values:
            return
        if group not in axes:
            run.define_metric(f"{group}/*", step_metric=f"{group}/at")
            axes.add(group)
        run.log({f"{group}/at": at} | {f"{group}/{key}": value for key, value in values.items()})

    code = 1
    try:
        yield log
        code = 0
    finally:
        run.finish(exit_code=code)


_TRACKERS = {TrackerKind.NONE: _none, TrackerKind.TENSORBOARD: _tensorboard, TrackerKind.WANDB: _wandb}


class Curves:
    """Finds in entries what can be drawn: the numbers, and how far along they are.

    An entry of stage "towers" with an epoch belongs to the group "towers/epoch", one with a step to
    "towers/step": losses over epochs and over steps are two curves. One with neither is counted.
    """

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()

    def of(self, entry: Mapping[str, Any]) -> tuple[str, int, dict[str, float]]:
        """Group, place along the curve, and the numbers under their names, nested ones joined by "/"."""
        stage = str(entry.get("stage") or entry.get("event") or "log")
        axis = next((name for name in AXES if _is_number(entry.get(name))), None)
        group = f"{stage}/{axis}" if axis else stage
        self._told[group] += 1
        named = leaves({key: value for key, value in entry.items() if key != axis}, separator="/")
        numbers = {name: value for name, value in named.items() if _is_number(value)}
        return group, int(entry[axis]) if axis else self._told[group], numbers


class RemainingTime:
    """Says how long a training will go on, at most every so often.

    Args:
        planned: steps until the end, those done before this moment not among them.
        say: is given the line.
        every_s: seconds between two lines, and before the first.
        clock: seconds, from anywhere.
    """

    def __init__(
        self,
        planned: int,
        say: Callable[[str], None],
        *,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.planned, self.say, self.every_s, self.clock = planned, say, every_s, clock
        self.started = self.said = clock()

    def at(self, done: int, what: str) -> None:
        """Says `what` and the time left, unless it has just said so.

        Args:
            done: of the planned steps.
            what: is going on, such as "towers: epoch 2 of 8, loss 5.31".
        """
        now = self.clock()
        if now - self.said >= self.every_s and done:
            self.said = now
            self.say(f"{what}: {left_in_words(done, self.planned, now - self.started)}")


def left_in_words(done: int, planned: int, seconds: float) -> str:
    """The time that the rest of `planned` steps takes if it goes on like the first `done` ≥ 1: "about 2 h 5 min left".

    Rounded up, and coarsely, as such a forecast deserves.
    """
    left_s = seconds / done * max(planned - done, 0)
    if left_s <= 60:
        return f"about {max(10 * math.ceil(left_s / 10), 10)} s left"
    minutes = math.ceil(left_s / 60)
    if minutes < 60:
        return f"about {minutes} min left"
    hours, minutes = divmod(5 * math.ceil(minutes / 5), 60)
    return f"about {hours} h {minutes} min left" if minutes else f"about {hours} h left"


def _missing(kind: TrackerKind) -> MissingPackage:
    return MissingPackage(
        f"tracker is {kind.value}, but the package {kind.value} is not installed here: "
        f"run 'python -m pip install {kind.value}', or set it to none"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
