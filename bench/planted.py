"""A generated log and catalog in which the rule of what comes next stands in words that the retriever does not read."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple", "grey", "golden")
FOLLOWS = (7, 4, 9, 0, 10, 2, 8, 5, 11, 1, 3, 6)
"""Place of the colour that follows each: a single cycle."""
SYLLABLES = ("ka", "lo", "mi", "ru", "ta", "ve", "zo", "ni", "pe", "sa", "du", "ho", "fi", "go", "ba", "ly")
FRIENDS = 15
"""Users who share a maker, where makers are shared."""
READ_BY_RETRIEVER = "retriever.encoder.max_tokens=8"
"""The setting by which the retriever reads the beginning of a text, the maker's name, and no colour."""


def planted_files(folder: Path, *, users: int, shared: float = 0.0) -> tuple[Path, Path]:
    """A log and a catalog: every user has a maker, whose twelve things differ by colour; a colour decides the next one.

    The retriever finds the twelve, and cannot order them, except for users whose maker is shared: there it has
    counted what follows what, and a reranker can add nothing.

    Args:
        shared: share of such users.
    """
    rng = np.random.default_rng(0)
    log, catalog, ids = [], [], dict[int, str]()
    for user in range(users):
        if user >= shared * users or user % FRIENDS == 0:
            name = " ".join("".join(rng.choice(SYLLABLES, 3)) for _ in range(3))
            order = rng.permutation(len(COLOURS))
            ids = {int(colour): f"i{user}x{place}" for place, colour in enumerate(order)}
            catalog += [[ids[colour], f"{name}, {COLOURS[colour]}"] for colour in sorted(ids, key=ids.__getitem__)]
        colour = int(rng.integers(len(COLOURS)))
        for step in range(6):
            log.append([f"u{user}", ids[colour], 1_600_000_000 + 86_400 * (10 * step + int(rng.integers(9)))])
            colour = FOLLOWS[colour]
    return _written(folder / "log.csv", ["user_id", "item_id", "timestamp"], log), _written(
        folder / "catalog.csv", ["item_id", "title"], catalog
    )


def _written(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path
