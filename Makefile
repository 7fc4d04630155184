# Everything on a machine that has only Python >= 3.11 and make. `make demo` and `make test` set up what they need.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help setup demo test test-fast test-nightly check hooks gpu lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY)  ## the environment, .venv

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python >= 3.11, found $$($(PYTHON) --version)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY)  ## a synthetic fleet: train, score, select, look
	$(BIN)/lossight demo --out demo

test: $(READY)  ## what has to pass before a change lands: each contract, on Ray and S3 too
	$(PYTEST) $(ARGS)

test-fast: $(READY)  ## for the edit loop: no Ray, no S3, no training; ARGS="tests/test_topk.py" for some
	$(PYTEST) -m "not ray and not s3 and not slow and not nightly" $(ARGS)

test-nightly: $(READY)  ## everything: the long series of faults, 500 examples of each property
	$(PYTEST) -m "" --hypothesis-profile=nightly $(ARGS)

check: $(READY)  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

hooks: $(READY)  ## before each commit, what CI checks (needs pre-commit)
	pre-commit install

gpu:  ## what this machine's GPU does, into benchmarks/results/; needs torch, NumPy and OpenCV alone; ARGS="--max-minutes 9"
	@$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

lock:  ## writes the versions of a fresh install of pyproject.toml to requirements.lock
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo "# Exact versions of everything, tests included. Written by 'make lock'."; \
	  .lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > requirements.lock
	rm -rf .lock

clean:  ## removes all that is made here
	rm -rf .venv .lock demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
