"""A journal: what was acknowledged is there whatever happens, and damage is told from a torn tail."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.journal import Journal, Mark
from store.errors import BadInput, CorruptArtifact, Mismatch, MissingStep, NoSpace

ROOT = Path(__file__).parents[2]
HEAD = 96


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal.create(tmp_path / "journal")
    for body in (b"first", b"second", b"third"):
        journal.append(body)
    return journal


def bodies(journal: Journal) -> list[bytes]:
    return journal.read()[0]


def test_records_come_back_in_their_order(journal: Journal) -> None:
    assert bodies(journal) == [b"first", b"second", b"third"]
    assert journal.mark() == Mark(3, HEAD + 3 * 12 + len(b"firstsecondthird"))
    assert bodies(Journal.create(journal.path)) == []


class PrunedMeanwhile(Journal):
    """One whose file is removed as soon as it has told how far it counts."""

    def mark(self) -> Mark:
        found = super().mark()
        self.path.unlink()
        return found


def test_one_that_is_pruned_while_it_is_read_is_missing(journal: Journal) -> None:
    with pytest.raises(MissingStep, match="is missing"):
        PrunedMeanwhile(journal.path).read()


def test_a_reader_gets_only_what_is_new_to_it(journal: Journal) -> None:
    _, seen = journal.read()
    assert journal.read(seen) == ([], seen)
    journal.append(b"fourth")
    assert journal.read(seen) == ([b"fourth"], journal.mark())


def test_several_records_come_at_once(journal: Journal) -> None:
    _, seen = journal.read()
    assert journal.append(b"fourth", b"fifth").records == 5
    journal.append(b"sixth")
    assert journal.read(seen)[0] == [b"fourth", b"fifth", b"sixth"]
    assert journal.append().records == 6


def test_the_record_is_synced_before_the_mark_and_the_mark_before_the_acknowledgement(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut at each sync would have left: the bytes that the disk was made to keep."""
    kept: list[bytes] = []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        sync(descriptor)
        kept.append(journal.path.read_bytes())

    before = journal.path.read_bytes()
    monkeypatch.setattr(os, "fsync", spy)
    journal.append(b"fourth")
    monkeypatch.undo()
    record, mark = kept
    assert record[:HEAD] == before[:HEAD]
    assert record[len(before) :].endswith(b"fourth")
    assert mark == journal.path.read_bytes()
    assert mark[:HEAD] != before[:HEAD]
    assert mark[HEAD:] == record[HEAD:]


@given(st.integers(0, 200), st.binary(min_size=0, max_size=40))
def test_a_torn_tail_is_not_read_and_cut_by_the_next_writer(
    tmp_path_factory: pytest.TempPathFactory, kept: int, noise: bytes
) -> None:
    journal = Journal.create(tmp_path_factory.mktemp("torn") / "journal")
    journal.append(b"acknowledged")
    whole = journal.path.read_bytes()
    journal.append(b"x" * 150)
    torn = whole[:HEAD] + journal.path.read_bytes()[HEAD : len(whole) + kept] + noise
    journal.path.write_bytes(torn)
    assert bodies(journal) == [b"acknowledged"]
    journal.append(b"next")
    assert bodies(journal) == [b"acknowledged", b"next"]
    assert journal.path.stat().st_size == journal.mark().end


@given(st.data())
def test_a_flipped_bit_is_noticed_or_costs_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    journal = Journal.create(tmp_path_factory.mktemp("flipped") / "journal")
    journal.append(b"first")
    journal.append(b"second", b"third")
    content = bytearray(journal.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    journal.path.write_bytes(content)
    if place >= HEAD:
        with pytest.raises(CorruptArtifact, match=r"record [123] of 3|belong to no record"):
            journal.read()
        return
    try:
        found = bodies(journal)
    except (CorruptArtifact, Mismatch):
        return
    assert found == [b"first", b"second", b"third"]


@pytest.mark.parametrize("kept", [0, 50, 100, 120])
def test_a_truncated_journal_is_damage(journal: Journal, kept: int) -> None:
    journal.path.write_bytes(journal.path.read_bytes()[:kept])
    with pytest.raises(CorruptArtifact, match=r"damaged.*index rollback"):
        journal.read()
    with pytest.raises(CorruptArtifact):
        journal.append(b"more")


def test_a_record_left_out_or_moved_is_damage(journal: Journal) -> None:
    content = journal.path.read_bytes()
    first, second = content[HEAD : HEAD + 17], content[HEAD + 17 : HEAD + 35]
    for changed in (second + first, first + first):
        journal.path.write_bytes(content[:HEAD] + changed + content[HEAD + len(changed) :])
        with pytest.raises(CorruptArtifact):
            journal.read()


def test_a_newer_format_is_told_from_damage(journal: Journal) -> None:
    journal.path.write_bytes(journal.path.read_bytes().replace(b"tandem journal 1", b"tandem journal 2"))
    with pytest.raises(Mismatch, match=r"format 2.*knows 1"):
        journal.read()


def test_no_journal_and_no_record(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(MissingStep, match="build-index"):
        Journal(tmp_path / "none").read()
    with pytest.raises(BadInput, match="empty"):
        journal.append(b"")


def test_a_journal_that_shrank_is_damage(journal: Journal) -> None:
    _, seen = journal.read()
    Journal.create(journal.path)
    with pytest.raises(CorruptArtifact, match=r"0 records where there were 3"):
        journal.read(seen)


def test_a_disk_that_fills_in_the_middle_leaves_the_journal_as_it_was(journal: Journal) -> None:
    before = journal.path.read_bytes()
    script = (
        "import sys; from pathlib import Path; from index.journal import Journal; from store.errors import NoSpace\n"
        "try: Journal(Path(sys.argv[1])).append(b'x' * 100_000)\n"
        "except NoSpace as error: print(error)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    done = subprocess.run(
        [sys.executable, "-c", script, str(journal.path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert "cannot write" in done.stdout
    assert journal.path.read_bytes() == before


def test_a_mark_that_cannot_be_synced_does_not_count(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sync = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        journal.append(b"fourth")
    monkeypatch.undo()
    assert bodies(journal) == [b"first", b"second", b"third"]
    journal.append(b"fourth, again")
    assert bodies(journal)[3:] == [b"fourth, again"]
