"""The benches of an index's life, small: kills that cost nothing, and releases that switch under readers."""

import shutil
from pathlib import Path

import pytest

from bench import crash
from bench.crash import SCRIPTS, prepare, states, strike
from bench.index_life import places
from bench.readers import publish_under_readers


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crash") / "template"
    prepare(root)
    return root


@pytest.mark.parametrize("struck", SCRIPTS)
def test_a_kill_costs_nothing_that_was_acknowledged(struck: str, template: Path, tmp_path: Path) -> None:
    whole = strike(template, tmp_path / "run", struck, kill_at=0)
    assert (whole.killed, whole.acknowledged, whole.fault) == (False, len(SCRIPTS[struck]), "")
    # As many, at least, as records, renames and syncs that a step cannot do without.
    assert whole.calls >= 5 * SCRIPTS[struck].count(struck)
    for kill_at in places(whole.calls, 4):
        outcome = strike(template, tmp_path / "run", struck, kill_at=kill_at)
        assert outcome.killed, f"at {kill_at} of {whole.calls}"
        assert outcome.fault == "", f"at {kill_at} of {whole.calls}"


def test_the_check_notices_what_is_missing(template: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(template, tmp_path / "run"))
    script = SCRIPTS["add"]
    assert len(states(script)[2][0]) == crash.ITEMS + 2 * crash.AT_ONCE
    code, said = crash._child(crash._check, str(root), "add", 1)
    assert code == 0
    assert "after 1 steps" in said[0]


def test_places_reach_from_the_first_call_to_the_last() -> None:
    assert places(100, 4) == [1, 34, 67, 100]
    assert places(3, 20) == [1, 2, 3]


def test_releases_switch_under_readers_without_a_failed_or_mixed_answer(tmp_path: Path) -> None:
    readers = publish_under_readers(tmp_path, releases=15, readers=2)
    assert [reader["failed"] for reader in readers] == [[], []]
    assert all(reader["answers"] > 15 and reader["releases"] >= 3 for reader in readers)
