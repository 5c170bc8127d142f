# Two commands for a newcomer: make demo, make test. What else there is: make help.
#
# GPU=1 | GPU=0      the GPU's lock file or the CPU's; without it, GPU=1 where nvidia-smi lists a GPU on Linux x86-64
# TORCH_INDEX=URL    index for PyTorch; without it scripts/setup.sh sees to it that a machine without a GPU gets the
#                    CPU build (from https://download.pytorch.org/whl/cpu unless pip's own settings offer one)
# PYTHON=PATH        interpreter for .venv (3.11 or later)
# WORKERS=N          tests at once (make test WORKERS=1 to see them one after another)
# ARGS=…             more arguments for pytest (make test ARGS="-k index") or the demo

GPU ?= $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo 1 || echo 0)
TORCH_INDEX ?=
PYTHON ?=
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1); [ $$n -gt 4 ] && echo 4 || echo $$n)
BENCH ?= $(sort $(wildcard bench/*.py))

LOCK := $(if $(filter 1,$(GPU)),requirements-gpu.lock,requirements.lock)
STAMP := .venv/$(LOCK)
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: setup assets extras demo test check bench clean help

$(STAMP): $(LOCK)
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" scripts/setup.sh $(LOCK)

setup: $(STAMP)  ## make .venv with the pinned packages, once for each change of the lock file

demo: $(STAMP)  ## the main job on MovieLens-100k, from download to recommendations
	@$(PY) cli.py demo $(ARGS)

assets: $(STAMP)  ## the data and the model that the slow tests read; without them these are skipped
	-@$(PY) cli.py fetch movielens-100k minilm-l6 >/dev/null

test: assets  ## every test that this machine can run; skips are listed with their reasons
	@$(PY) -m pytest -rs -n $(WORKERS) $(ARGS)

# milvus-lite brings faiss-cpu, which must not stand beside faiss-gpu.
extras: $(STAMP)  ## the packages of docs/scale-out.md; without them the tests that need them are skipped
	-@$(PY) -m pip install -qq -c $(LOCK) --group ray $(if $(filter 1,$(GPU)),pymilvus,--group milvus)

check: assets extras  ## the gate: format, lint, types, tests; as root on Debian it installs Chromium for the page's
	@scripts/browser.sh
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy .
	$(PY) -m pytest -rs -n $(WORKERS)

bench: $(STAMP)  ## every script of bench/, or make bench BENCH=bench/one.py; writes bench/results/
	@set -e; for script in $(BENCH); do echo "== $$script" >&2; PYTHONPATH=. $(PY) "$$script"; done

clean:  ## remove .venv and the caches; runs/ and assets/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile
