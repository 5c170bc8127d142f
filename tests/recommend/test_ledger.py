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


def test_trainings_cost_tokens_and_hours_and_no_recommendation_pays_for_them():
    prices = Prices(per_million_tokens=2.0, per_machine_hour=3.6)
    training = Spent(trainings=2, training_tokens=500_000, training_minutes=30)
    assert training.training_cost(prices) == pytest.approx(0.5 * 2.0 + 0.5 * 3.6)
    assert (ONE + training).cost_of_1000(prices) == ONE.cost_of_1000(prices)
    assert (ONE + training).fed_tokens == 300


def granted(allowance: Allowance, tokens: int) -> int:
    grant = allowance.reserve(tokens)
    assert grant is not None
    return grant.tokens


@pytest.mark.parametrize("shared", [False, True])
def test_an_allowance_shrinks_and_is_whole_again_the_next_day(tmp_path, monkeypatch, shared):
    monkeypatch.setattr(module, "_today", lambda: "2026-01-01")
    allowance = Allowance(100, folder=tmp_path if shared else None)
    first = allowance.reserve(80)
    assert granted(allowance, 80) == 20  # reserved is gone, whatever will be used of it
    allowance.settle(first, 30)
    assert granted(allowance, 80) == 50
    assert granted(allowance, 1) == 0
    late = Allowance(100, folder=tmp_path if shared else None).reserve(1)
    monkeypatch.setattr(module, "_today", lambda: "2026-01-02")
    allowance.settle(late, 0)  # of yesterday: today is whole all the same
    assert granted(allowance, 1000) == 100
    assert Allowance(None).reserve(10**9) is None


def test_what_is_in_the_ledger_is_spent(tmp_path):
    add_to_ledger(tmp_path, ONE)
    assert granted(Allowance(1000, folder=tmp_path), 5000) == 1000 - ONE.fed_tokens


def test_threads_and_processes_together_are_granted_no_more_than_the_day_has(tmp_path):
    program = """
import sys
from pathlib import Path
from recommend.ledger import Allowance
allowance = Allowance(1000, folder=Path(sys.argv[1]))
used = 0
for _ in range(40):
    grant = allowance.reserve(25)
    fed = grant.tokens // 2
    allowance.settle(grant, fed)
    used += fed
print(used)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path)]
    others = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    allowance = Allowance(1000, folder=tmp_path)

    def once(_: int) -> int:
        grant = allowance.reserve(25)
        assert grant is not None
        allowance.settle(grant, grant.tokens // 2)
        return grant.tokens // 2

    with ThreadPoolExecutor(4) as pool:
        used = sum(pool.map(once, range(40)))
    used += sum(int(other.communicate()[0]) for other in others)
    assert 900 < used <= 1000


def test_a_broken_file_of_grants_is_named(tmp_path):
    (tmp_path / "granted.json").write_text("[")
    with pytest.raises(CorruptArtifact, match=r"granted\.json cannot be read.*move it away"):
        Allowance(10, folder=tmp_path).reserve(1)


@pytest.mark.parametrize("content", ["{", "[]", '{"2026-01-01": {"wishes": 3}}'])
def test_a_broken_ledger_is_named_and_left_alone(tmp_path, content):
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(CorruptArtifact, match=r"ledger\.json cannot be read.*move it away"):
        add_to_ledger(tmp_path, ONE)
    with pytest.raises(CorruptArtifact, match=r"ledger\.json cannot be read"):
        Allowance(None, folder=tmp_path)
    assert (tmp_path / "ledger.json").read_text() == content
