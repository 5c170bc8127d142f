"""What a run has published, one release after another, and what of it is kept."""

import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from store.artifacts import RELEASES, Release, Run, read_release
from store.atomic import sync
from store.errors import BadInput, CorruptArtifact, RunBusy

KEPT = 3
"""Indexes that stay with their journals: the last so many that were published, each counted once."""
LIVE = "live"
JOURNAL = ".journal"


@dataclass(frozen=True)
class Published:
    """One release of a run.

    Attributes:
        number: from 1, rising.
        time: UTC, when it was written.
    """

    number: int
    release: Release
    time: str


def published(run: Run) -> list[Published]:
    """Every release on record, oldest first, the one that is served last.

    Raises:
        CorruptArtifact: when current.json or a record cannot be read.
        Mismatch: when a newer version wrote one.
    """
    current, _ = run.numbered_release()
    found = []
    for path in sorted((run.root / RELEASES).glob("[0-9]*.json")):
        try:
            number, release = read_release(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptArtifact(f"{path} is unreadable ({error}): delete it, nothing is served from it") from error
        # A record above the current number is of a publication that was killed before it took place.
        if number <= current:
            time = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
            found.append(Published(number, release, time))
    return found


def roll_back(run: Run, number: int | None = None) -> Published:
    """Publishes what an earlier release had, as a new release; the one that is left stays on record.

    Args:
        number: of the release; None: the last one that served something else than changes of the present index.

    Raises:
        BadInput: when there is no such release.
        CorruptArtifact: as `published`.
    """
    with run.lock():
        releases = published(run)
        if not releases:
            raise BadInput(f"{run.root} has published nothing yet")
        earlier, now = releases[:-1], releases[-1]
        there = [one for one in earlier if one.number == number] if number is not None else _others(earlier, now)
        if not there:
            known = ", ".join(str(one.number) for one in earlier) or "none"
            wanted = (
                "earlier release of another index, retriever or reranker" if number is None else f"release {number}"
            )
            raise BadInput(f"{run.root} has no {wanted} to go back to; earlier releases on record: {known}")
        back = there[-1]
        for kind in ("dataset", "retriever", "vectors", "index", "reranker"):
            if key := getattr(back.release, kind):
                run.artifact(kind, key)
        run.publish(**asdict(back.release))
    return back


def prune(run: Run, *, prepared: str | None = None) -> list[str]:
    """Removes what only releases beyond the last `KEPT` indexes name; returns what is gone.

    That is: indexes, their vectors and journals, data sets, and the records of such releases. Models stay. What was
    never published goes, too, unless another command is at work, which may have just made it. A process that has
    such an index open goes on reading it: its files vanish when it lets go of them.

    Args:
        prepared: the data set that the next steps work on; None: data sets stay.

    Raises:
        CorruptArtifact, Mismatch: as `published`.
    """
    with run.lock():
        releases, alone = published(run), not _others_at_work(run)
        newest_first = dict.fromkeys(one.release.index for one in reversed(releases) if one.release.index)
        kept = {*list(newest_first)[:KEPT], run.release().index, None}
        stays = [run.release(), *(one.release for one in releases if one.release.index in kept)]
        gone = [run.root / RELEASES / f"{one.number:06d}.json" for one in releases if one.release.index not in kept]
        for kind in ("index", "vectors") if prepared is None else ("index", "vectors", "dataset"):
            needed = {prepared, *(getattr(release, kind) for release in stays)}
            known = {getattr(one.release, kind) for one in releases}
            there = (run.root / "artifacts" / kind).glob("[!.]*")
            gone += [path for path in there if path.name not in needed and (alone or path.name in known)]
        journals = {f"{release.live}{JOURNAL}" for release in stays if release.live}
        gone += [path for path in (run.root / LIVE).glob(f"*{JOURNAL}") if path.name not in journals]
        for path in gone:
            _remove(path)
    return [path.relative_to(run.root).as_posix() for path in gone]


def _others_at_work(run: Run) -> bool:
    try:
        with run.work():
            return False
    except RunBusy:
        return True


def _others(earlier: list[Published], now: Published) -> list[Published]:
    """Those of other models or another index; `live` alone differs where changes began."""
    served = (now.release.retriever, now.release.index, now.release.reranker)
    return [one for one in earlier if (one.release.retriever, one.release.index, one.release.reranker) != served]


def _remove(path: Path) -> None:
    if path.is_dir():
        # By a new name first, so that no half of an artifact ever stands where a whole one is looked for.
        aside = path.with_name(f".tmp-{path.name}-pruned")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        sync(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
