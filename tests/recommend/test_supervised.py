"""A reranker that hangs, dies or raises takes nobody along, and is back soon after."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.workspace import open_workspace
from recommend.processes import fresh_context
from recommend.recommender import Recommender
from recommend.release import load_stages
from recommend.supervised import AGAIN_S, RerankerFailure, SupervisedReranker, _serve, supervised
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.precision import Precision
from tests.pipeline.shop import weigh_reranker
from tests.rerank import tiny_bert
from tests.rerank.tiny_bert import WORDS

REQUEST = RerankRequest(tuple(WORDS[:3]), tuple(WORDS[4:12]))


class Faulty:
    """A real reranker that does what the first item of a history says."""

    name = "faulty"

    def __init__(self, folder: Path) -> None:
        self.inside = tiny_bert.shaken(folder)

    def score(self, requests: list[RerankRequest]) -> RerankResult:
        for request in requests:
            match request.history[:1]:
                case ("hang",):
                    time.sleep(600)
                case ("die",):
                    os.kill(os.getpid(), signal.SIGKILL)
                case ("raise",):
                    raise MemoryError("no more")
        return self.inside.score(requests)

    def calibrate(self) -> None:
        self.inside.calibrate()

    def forget(self) -> None:
        self.inside.forget()


def faulty(folder: Path) -> Reranker:
    return Faulty(folder)


def asked(what: str) -> RerankRequest:
    return replace(REQUEST, history=(what, *REQUEST.history))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write_tiny_bert(tmp_path_factory.mktemp("child") / "tiny")


@pytest.fixture(scope="module")
def child(model: Path) -> Iterator[SupervisedReranker]:
    with SupervisedReranker(partial(faulty, model), timeout_s=5.0) as found:
        found.wait_until_ready()
        yield found


def back(found: SupervisedReranker, before: int) -> None:
    """A new child answers."""
    assert found.starts == before + 1
    found.wait_until_ready()
    assert np.isfinite(found.score([REQUEST]).scores[0]).all()


def test_a_child_scores_as_the_caller_would(child: SupervisedReranker, model: Path) -> None:
    there, here = child.score([REQUEST, asked("x")]), tiny_bert.shaken(model).score([REQUEST, asked("x")])
    for one, other in zip(there.scores, here.scores, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert there.prompt_tokens == here.prompt_tokens
    child.calibrate()


def test_a_hang_is_killed_and_a_new_child_answers(model: Path) -> None:
    with SupervisedReranker(partial(faulty, model), timeout_s=0.5) as found:
        found.wait_until_ready()
        started = time.monotonic()
        with pytest.raises(RerankerFailure, match=r"no answer within 0\.5 s"):
            found.score([asked("hang")])
        assert time.monotonic() - started < 3
        with pytest.raises(RerankerFailure, match="being started"):
            found.score([REQUEST])
        found.timeout_s = 5.0
        back(found, 1)
        assert found.failures == {"timeout": 1, "starting": 1}


def test_a_child_that_dies_is_replaced(child: SupervisedReranker) -> None:
    before = child.starts
    with pytest.raises(RerankerFailure, match="its process ended"):
        child.score([asked("die")])
    back(child, before)


def test_what_the_reranker_raises_reaches_the_caller_and_the_child_lives_on(child: SupervisedReranker) -> None:
    before = child.starts
    with pytest.raises(RuntimeError, match="MemoryError: no more"):
        child.score([asked("raise")])
    assert child.starts == before
    assert len(child.score([REQUEST]).scores[0]) == 8


def test_who_wants_to_be_forgotten_waits_for_a_busy_child_and_ends_none(child: SupervisedReranker) -> None:
    before, failures = child.starts, dict(child.failures)
    child.timeout_s = 0.2
    with ThreadPoolExecutor(1) as pool:
        with child._lock:
            forgetting = pool.submit(child.forget)
            time.sleep(0.5)
            child.timeout_s = 5.0
        forgetting.result(10)
    assert (child.starts, dict(child.failures)) == (before, failures)
    assert len(child.score([REQUEST]).scores[0]) == 8


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(tmp_path: Path, model: Path) -> None:
    (there := tmp_path / "there").symlink_to(tmp_path / "nowhere")
    with SupervisedReranker(partial(faulty, there), timeout_s=5.0, start_s=60.0) as found:
        until = time.monotonic() + 60
        while not found.trouble and time.monotonic() < until:
            time.sleep(0.05)
        assert "cannot be read" in found.trouble
        with pytest.raises(RerankerFailure, match="being started"):
            found.score([REQUEST])
        there.unlink()
        there.symlink_to(model)
        time.sleep(AGAIN_S)
        with pytest.raises(RerankerFailure, match="being started"):
            found.score([REQUEST])
        found.wait_until_ready()
        assert found.failures["start"] == 1
        assert found.trouble == ""


def test_a_child_that_nobody_asks_is_started_again_all_the_same(tmp_path: Path, model: Path) -> None:
    def tended(*, starts: int, failed: int) -> None:
        until = time.monotonic() + 60
        while (found.starts, found.failures["start"]) != (starts, failed) and time.monotonic() < until:
            found.revive()
            time.sleep(0.05)
        assert (found.starts, found.failures["start"]) == (starts, failed)

    (there := tmp_path / "there").symlink_to(tmp_path / "nowhere")
    with SupervisedReranker(partial(faulty, there), timeout_s=5.0, start_s=60.0) as found:
        tended(starts=2, failed=2)  # its model could not be loaded, and cannot the second time
        there.unlink()
        there.symlink_to(model)
        tended(starts=3, failed=2)
        found.wait_until_ready()
        assert found._child is not None
        found._child.kill()
        found._child.join()
        tended(starts=4, failed=2)
        found.wait_until_ready()
        assert len(found.score([REQUEST]).scores[0]) == 8


def test_a_model_that_takes_too_long_to_load_is_told(model: Path) -> None:
    slow = SupervisedReranker(partial(faulty, model), timeout_s=1.0, start_s=0.01)
    with slow, pytest.raises(RerankerFailure, match=r"not loaded within 0\.01 s"):
        slow.wait_until_ready()


def loading_for_ever(told: Path) -> Reranker:
    told.write_text(str(os.getpid()))
    time.sleep(600)
    raise AssertionError("nobody waits for so long")


def serving_for_ever(told: Path) -> None:
    SupervisedReranker(partial(loading_for_ever, told), timeout_s=5.0)
    time.sleep(600)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return holds()


def test_a_child_that_loads_its_model_ends_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "child"
    caller = fresh_context().Process(target=serving_for_ever, args=(told,))
    caller.start()
    assert within(120, lambda: told.exists() and bool(told.read_text()))
    child = Path("/proc") / told.read_text()
    assert child.exists()
    caller.kill()
    caller.join()
    assert within(30, lambda: not child.exists())


def test_closing_ends_the_child(model: Path) -> None:
    found = SupervisedReranker(partial(faulty, model), timeout_s=5.0)
    found.wait_until_ready()
    process = found._child
    assert process is not None
    found.close()
    assert not process.is_alive()


def test_a_child_whose_caller_leaves_an_answer_unread_ends_without_a_word(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = fresh_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, partial(faulty, model)))
    process.start()
    theirs.close()
    assert ours.poll(120)
    ours.close()
    process.join(30)
    assert process.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_recommender_goes_on_in_retrieval_order_while_the_child_is_away(shop, tmp_path: Path) -> None:
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    ws = open_workspace(root)
    release = ws.run.release()
    assert release.reranker is not None
    stages = load_stages(ws.run, release)
    history = ws.dataset.interactions[5]
    alone = Recommender(stages, ws.config.recommending).recommend(history)
    with supervised(ws.run, release.reranker, Precision.FLOAT32, timeout_s=20.0) as child:
        recommender = Recommender(replace(stages, reranker=child), ws.config.recommending)
        child.wait_until_ready()
        served = recommender.recommend(history)
        assert not served.degraded
        assert [item.item_id for item in served.items] == [item.item_id for item in alone.items]
        assert child._child is not None
        child._child.kill()
        child._child.join()
        degraded = recommender.recommend(history)
        assert "its process ended" in degraded.degraded
        assert [item.retrieval_rank for item in degraded.items] == list(range(1, len(degraded.items) + 1))
        child.wait_until_ready()
        assert not recommender.recommend(history).degraded
