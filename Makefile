# Everything on a machine that has only Python >= 3.11 and make. `make demo` and `make test` set up what they need.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check bench lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python >= 3.11, found $$($(PYTHON) --version)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY)  ## a synthetic fleet: train, score, select, look
	$(BIN)/lossight demo --out demo

test: $(READY)  ## all tests; PYTEST="-m 'not ray and not s3'" for the quick ones
	$(BIN)/python -m pytest $(PYTEST)

check: $(READY)  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## each file of benchmarks/ answers one question; results go to benchmarks/results/
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

lock:  ## writes the versions of a fresh install of pyproject.toml to requirements.lock
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo "# Exact versions of everything, tests included. Written by 'make lock'."; \
	  .lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > requirements.lock
	rm -rf .lock

clean:
	rm -rf .venv .lock demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
