"""HTTP load from a process of its own: so many requests a second, or as fast as answers come.

    python -m bench.load --url http://127.0.0.1:8000 --bodies bodies.json --rate 200 --seconds 10

`bodies.json` is a list of [method, path, body, name]; they are sent in turn. Prints one JSON object: how many were
sent, answers by status, degraded ones, percentiles of the milliseconds from the moment at which a request was due, and
the names, where they have one, of those that were answered with 200.
"""

import argparse
import asyncio
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

LATE_S = 30.0
"""After so long an answer counts as none."""


@dataclass
class Sums:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)
    degraded: int = 0
    acknowledged: list[str] = field(default_factory=list)
    broken: int = 0

    def take(self, status: int, body: bytes, ms: float, name: str) -> None:
        """One answer."""
        self.statuses[status] += 1
        if status == 200:
            self.ms.append(ms)
            self.degraded += b'"degraded":true' in body
            if name:
                self.acknowledged.append(name)

    def as_json(self, sent: int, seconds: float) -> dict[str, Any]:
        """For whoever started this."""
        spread = np.percentile(self.ms, [50, 95, 99]).tolist() if self.ms else [float("nan")] * 3
        return {
            "sent": sent,
            "seconds": seconds,
            "statuses": dict(self.statuses),
            "degraded": self.degraded,
            "broken": self.broken,
            "good_per_second": self.statuses[200] / seconds,
            **dict(zip(("p50_ms", "p95_ms", "p99_ms"), spread, strict=True)),
            "acknowledged": self.acknowledged,
        }


@dataclass(eq=False)
class Line(asyncio.Protocol):
    """A connection with one request under way at a time; far cheaper than a client library."""

    sums: Sums
    free: deque["Line"]
    woken: asyncio.Event
    due: float = 0.0
    name: str = ""
    under_way: bool = False
    closed: bool = False
    data: bytearray = field(default_factory=bytearray)
    transport: Any = None

    def itself(self) -> "Line":
        """For whoever wants a factory."""
        return self

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, message: bytes, due: float, name: str) -> None:
        """Sends a request that was due at that moment."""
        self.due, self.name, self.under_way = due, name, True
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return
        length = int(self.data[:head].lower().rpartition(b"content-length:")[2].split(b"\r\n")[0])
        if len(self.data) < head + 4 + length:
            return
        status, body = int(self.data[9:12]), bytes(self.data[head + 4 :])
        self.data.clear()
        self.under_way = False
        self.sums.take(status, body, (time.perf_counter() - self.due) * 1000, self.name)
        self.free.append(self)
        self.woken.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.sums.broken += self.under_way
        self.under_way, self.closed = False, True
        if self in self.free:
            self.free.remove(self)
        self.woken.set()


def messages(bodies: list[list[Any]], host: str, key: str) -> list[tuple[bytes, str]]:
    """Whole requests in bytes, and their names."""
    made = []
    for method, path, body, name in bodies:
        text = json.dumps(body).encode()
        authorized = f"authorization: Bearer {key}\r\n" if key else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{authorized}content-type: application/json\r\n"
        made.append((f"{head}content-length: {len(text)}\r\n\r\n".encode() + text, name))
    return made


async def shoot(args: argparse.Namespace) -> dict[str, Any]:
    """Sends until the time is up, then waits for what is under way."""
    place = urlsplit(args.url)
    sums, free, woken = Sums(), deque[Line](), asyncio.Event()
    loop = asyncio.get_running_loop()
    lines = [Line(sums, free, woken) for _ in range(args.connections)]
    for line in lines:
        await loop.create_connection(line.itself, place.hostname, place.port)
    free.extend(lines)
    ready = messages(json.loads(Path(args.bodies).read_text()), place.netloc, args.key)
    started, sent = time.perf_counter(), 0
    while (now := time.perf_counter()) < started + args.seconds and sent < args.most:
        due = started + sent / args.rate if args.rate else now
        if due > now:
            await asyncio.sleep(due - now)
        while not free and not all(line.closed for line in lines):
            woken.clear()
            await woken.wait()
        if not free:
            break
        message, name = ready[sent % len(ready)]
        # Without a rate a request is due when a connection is free: the wait for it is the one before's own time.
        free.popleft().send(message, due if args.rate else time.perf_counter(), name)
        sent += 1
        if not args.rate or sent % 16 == 0:
            await asyncio.sleep(0)
    seconds = time.perf_counter() - started
    until = time.perf_counter() + LATE_S
    while any(line.under_way for line in lines) and time.perf_counter() < until:
        await asyncio.sleep(0.01)
    sums.broken += sum(line.under_way for line in lines)
    return sums.as_json(sent, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--bodies", required=True, help="JSON file: a list of [method, path, body, name]")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: each connection asks on")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--most", type=int, default=1_000_000, help="requests, at most")
    print(json.dumps(asyncio.run(shoot(parser.parse_args()))))


if __name__ == "__main__":
    main()
