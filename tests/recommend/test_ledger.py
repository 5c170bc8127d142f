import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recommend import ledger as module
from recommend.ledger import Allowance, Ledger, Prices, Spent, add_to_ledger
from store.errors import CorruptArtifact

ONE = Spent(requests=1, reranked=1, candidates=20, prompt_tokens=700, cached_tokens=400, retrieval_ms=4, rerank_ms=96)


def test_costs_by_hand():
    prices = Prices(per_million_tokens=2.0, per_machine_hour=3.6)
    # 300 tokens went through the model, and the machine worked for a tenth of a second.
    assert ONE.fed_tokens == 300
    assert ONE.cost(prices) == pytest.approx(300 * 2e-6 + 0.1 / 3600 * 3.6)
    assert (ONE + ONE).cost_of_1000(prices) == pytest.approx(1000 * ONE.cost(prices))
    assert Spent().cost_of_1000(prices) == 0


def test_days_add_up_and_outlive_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_today", lambda: "2026-01-01")
    add_to_ledger(tmp_path, ONE)
    add_to_ledger(tmp_path, ONE)
    monkeypatch.setattr(module, "_today", lambda: "2026-01-02")
    assert Ledger.read(tmp_path).today == Spent()
    found = add_to_ledger(tmp_path, ONE)
    assert found == Ledger.read(tmp_path)
    assert found.today == ONE
    assert found.days["2026-01-01"] == ONE + ONE
    assert found.total == ONE + ONE + ONE


def test_nothing_is_lost_between_threads_and_processes(tmp_path):
    program = """
import sys
from pathlib import Path
from recommend.ledger import Spent, add_to_ledger
for _ in range(20):
    add_to_ledger(Path(sys.argv[1]), Spent(requests=1))
"""
    root = Path(__file__).parents[2]
    others = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add_to_ledger(tmp_path, Spent(requests=1)), range(40)))
    assert [other.wait() for other in others] == [0, 0]
    assert Ledger.read(tmp_path).total.requests == 80


def test_an_allowance_shrinks_and_is_whole_again_the_next_day(monkeypatch):
    monkeypatch.setattr(module, "_today", lambda: "2026-01-01")
    allowance = Allowance(100, spent=30)
    assert allowance.remaining() == 70
    allowance.spend(90)
    assert allowance.remaining() == 0
    monkeypatch.setattr(module, "_today", lambda: "2026-01-02")
    assert allowance.remaining() == 100
    assert Allowance(None, spent=10**9).remaining() is None


@pytest.mark.parametrize("content", ["{", "[]", '{"2026-01-01": {"wishes": 3}}'])
def test_a_broken_ledger_is_named_and_left_alone(tmp_path, content):
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(CorruptArtifact, match=r"ledger\.json cannot be read.*move it away"):
        add_to_ledger(tmp_path, ONE)
    assert (tmp_path / "ledger.json").read_text() == content
