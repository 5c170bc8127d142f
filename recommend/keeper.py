"""A thread with duties that come again and again, whatever becomes of one of them."""

import logging
import threading
from collections.abc import Callable, Mapping

_LOG = logging.getLogger(__name__)


class Keeper:
    """Does its duties after every pause, in their order; one that fails keeps it from no other.

    Args:
        duties: what is done, by its name for people.
        pause_s: between two rounds.
    """

    def __init__(self, duties: Mapping[str, Callable[[], object]], *, pause_s: float) -> None:
        self._duties, self._pause_s = duties, pause_s
        self._failing: dict[str, str] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="keeper")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether there will be another round."""
        return self._thread.is_alive()

    @property
    def troubles(self) -> list[str]:
        """What could not be done in the last round, and why."""
        return [f"{duty} fails: {words}" for duty, words in self._failing.copy().items()]

    def close(self) -> None:
        """Ends it; a round under way is finished."""
        self._ends.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ends.wait(self._pause_s):
            for duty, work in self._duties.items():
                self._do(duty, work)

    def _do(self, duty: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if duty not in self._failing:
                _LOG.exception("%s fails", duty)
            self._failing[duty] = f"{type(error).__name__}: {error}"
        else:
            self._failing.pop(duty, None)
