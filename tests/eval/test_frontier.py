"""Which settings are worth their time, and how a report shows them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.agreement import Agreement
from eval.frontier import Frontier, FrontierPoint, Setting, WholeCatalog
from eval.page import render
from eval.report import write_report
from eval.significance import paired_bootstrap
from tests.eval.test_report import a_report


def point(
    name: str, ndcg10: float, ms: float, *, depth: int = 10, share: float = 1.0, agreement: Agreement | None = None
) -> FrontierPoint:
    rng = np.random.default_rng(0)
    base = rng.random(50)
    return FrontierPoint(
        setting=Setting(name, "float32", depth, share),
        ndcg10=ndcg10,
        test=paired_bootstrap(base + (ndcg10 - 0.5), base),
        tokens=123.4,
        p50_ms=ms,
        p95_ms=2 * ms,
        mean_ms=ms,
        memory_mb=90.0,
        cost_of_1000=0.25,
        agreement=agreement,
    )


def frontier(*points: FrontierPoint) -> Frontier:
    return Frontier(
        users=50,
        retrieval_ndcg10=0.5,
        retrieval_ms=5.0,
        ceiling={5: 0.6, 10: 0.7},
        points=points,
        whole_catalog=[
            WholeCatalog("a", 31_000.0, 2500.0, 20, 0.55, 0.56),
            WholeCatalog("<i>b", 9_000_000.0, None, 0, None, None),
        ],
        training_minutes={"a": 4.0},
        training_cost={"a": 0.0},
    )


BOTH = frontier(
    point("a", 0.52, 20),
    point("a", 0.55, 60, depth=20, agreement=Agreement(0.0123, 0.98765)),
    point("<i>b", 0.53, 70),  # slower and worse than the one before
    point("<i>b", 0.49, 6),  # fast, and worse than retrieval alone
    point("a", 0.56, 200, depth=50, share=0.5),
)


def test_the_front_holds_those_that_no_other_beats_cheapest_first() -> None:
    assert [(found.ndcg10, found.mean_ms) for found in BOTH.front] == [(0.52, 20), (0.55, 60), (0.56, 200)]
    assert frontier(point("a", 0.5, 20)).front == []  # no better than retrieval alone
    same_time = frontier(point("a", 0.52, 20), point("b", 0.53, 20))
    assert [found.setting.model for found in same_time.front] == ["b"]


def test_settings_in_words() -> None:
    assert Setting("a", "int8", 20, 1.0).words == "a, int8, 20 deep"
    assert Setting("a", "int8", 20, 0.25).words == "a, int8, 20 deep, 25% of users"


def test_a_report_holds_the_frontier_as_json_picture_and_table(tmp_path) -> None:
    made = replace(a_report(), frontier=BOTH)
    page = write_report(tmp_path, made).read_text()
    saved = json.loads((tmp_path / "report.json").read_text())["frontier"]
    assert [one["on_front"] for one in saved["points"]] == [True, True, False, False, True]
    assert saved["points"][1]["setting"] == {"model": "a", "precision": "float32", "depth": 20, "share": 1.0}
    assert saved["points"][1]["agreement"] == {"largest_difference": 0.0123, "kendall_tau": 0.98765}
    assert saved["points"][0]["agreement"] is None
    assert saved["whole_catalog"][0]["two_stage_ndcg10"] == 0.56
    assert saved["ceiling"] == {"5": 0.6, "10": 0.7}
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    section = page[page.index("<h2>What the language model gains") :]
    section = section[: section.index("</section>")]
    for said in (
        "a, float32, 20 deep",
        "0.5500",
        "+0.0500",
        "▲ helps",
        "123",
        "31,000 tokens",
        "read for 20 users",
        "2.5 s",
        "0.988 / 0.012",
    ):
        assert said in section, said
    assert section.count('<tr class="ours">') == 3
    assert "&lt;i&gt;b, float32" in section
    assert "<i>b" not in section.replace("alt=", "")


def test_without_a_frontier_nothing_is_said_of_one(tmp_path) -> None:
    page = write_report(tmp_path, a_report()).read_text()
    assert "What the language model gains" not in page
    assert json.loads((tmp_path / "report.json").read_text())["frontier"] is None
    assert not (tmp_path / "frontier.png").exists()


@pytest.mark.parametrize("points", [(), (point("$x$", 0.4, 8),)])
def test_a_frontier_without_gain_is_drawn_too(points) -> None:
    made = replace(a_report(), frontier=frontier(*points))
    assert "What the language model gains" in render(made, made.intervals())
