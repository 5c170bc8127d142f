"""The table of growth."""

from bench.growth import table

ROW = {
    "items": 1000,
    "kind": "flat",
    "picked": True,
    "recall": 1.0,
    "p50_ms": 0.5,
    "queries_per_second": 1200,
    "searched_bytes": 512.0,
    "kept_bytes": 0.0,
    "build_seconds": 0.0,
}
FAR = {
    "items": 10_000_000,
    "kind": "ivf-pq",
    "recall": 0.66,
    "one_recall": 0.98,
    "p50_ms": 17.2,
    "searched_bytes": 30.6,
    "build_seconds": 892.0,
}


def test_what_is_picked_stands_out_and_ten_million_stand_below() -> None:
    lines = table([ROW, {**ROW, "kind": "hnsw", "picked": False}], FAR).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:4]] == ["**flat**", "hnsw"]
    assert lines[4].startswith("| 10,000,000 | ivf-pq")
    assert "0.980" in lines[4]
    assert "17.2 ms" in lines[4]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])


def test_without_ten_million_the_table_ends_with_what_grew() -> None:
    assert len([line for line in table([ROW], None).splitlines() if line.startswith("| 1")]) == 1
