"""An append-only file of records that survives a kill at any byte: what was acknowledged is there, the rest is not."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from store.atomic import atomic_write, disk_trouble_told
from store.errors import BadInput, CorruptArtifact, Mismatch, MissingStep

MAGIC = b"tandem journal "
FORMAT = 1

_HEAD = struct.Struct("<24s")
_MARK = struct.Struct("<QQI")
_RECORD = struct.Struct("<QI")
_MARKS_AT = (32, 64)
"""Two places, written in turn: a kill in the middle of one leaves the other."""
_START = 96


@dataclass(frozen=True, order=True)
class Mark:
    """How far a journal is acknowledged.

    Attributes:
        records: how many records there are.
        end: the byte behind the last of them.
    """

    records: int
    end: int


class Journal:
    """Records of bytes, each with length and checksum, and two marks at the head that say how far they count.

    A record is written behind the last one and synced; then the mark is moved and synced; then it is acknowledged.
    Bytes behind the mark are what a killed writer left: nobody reads them, and the next writer cuts them off. A
    fault before the mark is damage. Writers hold a lock of their own; readers need none, at any moment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "Journal":
        """An empty journal at `path`, in place of what stood there.

        Raises:
            NoSpace: when the disk refuses the write.
        """
        head = bytearray(_START)
        head[: _HEAD.size] = _HEAD.pack(MAGIC + str(FORMAT).encode())
        head[_MARKS_AT[0] : _MARKS_AT[0] + _MARK.size] = _packed(Mark(0, _START))
        atomic_write(path, bytes(head))
        return cls(path)

    def mark(self) -> Mark:
        """How far the journal counts now: a few microseconds, so that readers can ask before every request.

        Raises:
            MissingStep: when there is no journal.
            CorruptArtifact: when its head is damaged.
            Mismatch: when a newer version wrote it.
        """
        with self._file(buffering=0) as file:
            head = file.read(_START)
        return self._read_mark(head)

    def read(self, since: Mark | None = None) -> tuple[list[bytes], Mark]:
        """The records behind `since`, or all of them, and how far they reach.

        Raises:
            CorruptArtifact: when a record that counts is truncated or altered.
            MissingStep, Mismatch: as `mark`.
        """
        upto = self.mark()
        start = Mark(0, _START) if since is None else since
        if upto < start:
            raise self._damaged(f"it counts {upto.records:,} records where there were {start.records:,}")
        if upto == start:
            return [], upto
        with self._file() as file:
            file.seek(start.end)
            content = file.read(upto.end - start.end)
        return list(self._records(content, start, upto)), upto

    def _file(self, *, buffering: int = -1) -> IO[bytes]:
        try:
            return self.path.open("rb", buffering=buffering)
        except FileNotFoundError as error:
            raise MissingStep(
                f"{self.path} is missing: publish the index anew with 'python cli.py build-index'"
            ) from error

    def append(self, *bodies: bytes) -> Mark:
        """Puts records at the end, all or none, and returns once they are on the disk; the caller holds a lock.

        Raises:
            BadInput: for an empty record.
            NoSpace: when the disk is full or refuses the write; the journal is as it was.
            MissingStep, CorruptArtifact, Mismatch: as `mark`.
        """
        if not all(bodies):
            raise BadInput("a journal takes no empty records")
        before = self.mark()
        with disk_trouble_told(self.path):
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                # What a killed writer left behind the mark, or a disk that filled up under this one.
                if os.fstat(descriptor).st_size != before.end:
                    self._cut(descriptor, before)
                return self._write(descriptor, bodies, before)
            finally:
                os.close(descriptor)

    def _write(self, descriptor: int, bodies: Sequence[bytes], before: Mark) -> Mark:
        after, records = before, []
        for body in bodies:
            records.append(_RECORD.pack(len(body), _checksum(body, after)) + body)
            after = Mark(after.records + 1, after.end + len(records[-1]))
        # Never the place of the mark that counts.
        mark_at = next(place for place in _MARKS_AT if _unpacked(os.pread(descriptor, _MARK.size, place)) != before)
        old_mark = os.pread(descriptor, _MARK.size, mark_at)
        try:
            _write_all(descriptor, b"".join(records), before.end)
            os.fsync(descriptor)
            # Only now may the mark reach the disk: a mark before its record would count what is not there.
            _write_all(descriptor, _packed(after), mark_at)
            os.fsync(descriptor)
        except OSError:
            _write_all(descriptor, old_mark, mark_at)
            os.ftruncate(descriptor, before.end)
            raise
        return after

    def _cut(self, descriptor: int, mark: Mark) -> None:
        if os.fstat(descriptor).st_size < mark.end:
            raise self._damaged(f"it has {os.fstat(descriptor).st_size:,} bytes, {mark.end:,} were acknowledged")
        os.ftruncate(descriptor, mark.end)

    def _records(self, content: bytes, start: Mark, upto: Mark) -> Iterator[bytes]:
        if len(content) < upto.end - start.end:
            raise self._damaged(f"it has {start.end + len(content):,} bytes, {upto.end:,} were acknowledged")
        place = 0
        for number in range(start.records, upto.records):
            body_at = place + _RECORD.size
            length, checksum = _RECORD.unpack_from(content, place) if body_at <= len(content) else (0, 0)
            body = content[body_at : body_at + length]
            mark = Mark(number, start.end + place)
            if not length or len(body) != length or _checksum(body, mark) != checksum:
                raise self._damaged(f"record {number + 1:,} of {upto.records:,} has been altered")
            yield body
            place = body_at + length
        if place != len(content):
            raise self._damaged(f"{len(content) - place:,} bytes belong to no record")

    def _read_mark(self, head: bytes) -> Mark:
        magic = head[: _HEAD.size].rstrip(b"\0")
        if len(head) < _START or not magic.startswith(MAGIC):
            raise self._damaged("its head is no journal's")
        if magic != MAGIC + str(FORMAT).encode():
            found = magic.removeprefix(MAGIC).decode(errors="replace")
            raise Mismatch(
                f"{self.path} has format {found}, this version knows {FORMAT}: use the version that wrote it"
            )
        places = [head[place : place + _MARK.size] for place in _MARKS_AT]
        found_marks = [mark for place in places if (mark := _unpacked(place)) is not None]
        if not found_marks:
            raise self._damaged("neither of its marks is whole")
        broken = len(found_marks) < sum(map(any, places))
        return self._beyond(max(found_marks)) if broken else max(found_marks)

    def _beyond(self, mark: Mark) -> Mark:
        """The mark after all whole records behind `mark`: the broken mark may have counted them."""
        with self.path.open("rb") as file:
            file.seek(mark.end)
            content = file.read()
        place = 0
        while place + _RECORD.size < len(content):
            length, checksum = _RECORD.unpack_from(content, place)
            body = content[place + _RECORD.size : place + _RECORD.size + length]
            if not length or len(body) != length or _checksum(body, mark) != checksum:
                break
            place += _RECORD.size + length
            mark = Mark(mark.records + 1, mark.end + _RECORD.size + length)
        return mark

    def _damaged(self, fault: str) -> CorruptArtifact:
        return CorruptArtifact(
            f"the journal {self.path} is damaged ({fault}): go back to an earlier release with "
            "'python cli.py index rollback', or copy the file from a backup"
        )


def _checksum(body: bytes, before: Mark) -> int:
    """Of a record at its place: one that was moved or left out is noticed, too."""
    return zlib.crc32(body, zlib.crc32(struct.pack("<QQQ", before.records, before.end, len(body))))


def _packed(mark: Mark) -> bytes:
    numbers = struct.pack("<QQ", mark.records, mark.end)
    return _MARK.pack(mark.records, mark.end, zlib.crc32(numbers))


def _unpacked(place: bytes) -> Mark | None:
    records, end, checksum = _MARK.unpack(place)
    whole = zlib.crc32(place[:16]) == checksum and end >= _START
    return Mark(records, end) if whole else None


def _write_all(descriptor: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written
