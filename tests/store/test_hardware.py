import pytest
import torch

from store import hardware
from store.hardware import LEAST_SPEEDUP, Precision, bfloat16_speedup, computes_bfloat16


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def measured_anew():
    bfloat16_speedup.cache_clear()
    yield
    bfloat16_speedup.cache_clear()


@pytest.mark.parametrize(("precision", "expected"), [(Precision.FLOAT32, False), (Precision.BFLOAT16, True)])
def test_a_stated_precision_is_taken(precision, expected):
    assert computes_bfloat16(precision) is expected


@pytest.mark.parametrize(("speedup", "expected"), [(0.0, False), (0.5, False), (1.0, False), (1.6, True), (3.5, True)])
def test_automatic_precision_takes_what_is_faster(speedup, expected, without_gpu, monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_speedup", lambda: speedup)
    assert computes_bfloat16(Precision.AUTO) is expected


def test_a_gpu_computes_it_without_being_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "bfloat16_speedup", lambda: 0.0)
    assert computes_bfloat16(Precision.AUTO) is True


def test_a_processor_without_the_instructions_is_not_measured(measured_anew, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert bfloat16_speedup() == 0.0


@pytest.mark.parametrize(("slower", "expected"), [(torch.bfloat16, False), (torch.float32, True)])
def test_the_products_are_timed_once_and_not_assumed(slower, expected, without_gpu, measured_anew, monkeypatch):
    """A clock that stands still but for one kind of products."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    now, done, threads = [0.0], [], torch.get_num_threads()
    multiply = torch.Tensor.__matmul__

    def timed(left, right):
        done.append(left.dtype)
        now[0] += 0.04 if left.dtype is slower else 0.01
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    assert bfloat16_speedup() == pytest.approx(0.25 if slower is torch.bfloat16 else 4.0)
    assert computes_bfloat16(Precision.AUTO) is expected is (bfloat16_speedup() >= LEAST_SPEEDUP)
    assert torch.get_num_threads() == threads
    assert done.count(torch.bfloat16) == done.count(torch.float32) == 1 + hardware.TRIALS
