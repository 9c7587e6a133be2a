# Two commands do all: `make demo` and `make test`. Each creates .venv, installs, and runs; again, it only runs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench clean

demo: .venv/demo.stamp
	$(BIN)/selectkd-eval demo $(DEMO)

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 $(TESTS)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.stamp
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

# torch goes in first: another package asking for it would bring a build of its own choice.
.venv/torch.stamp: .venv/bin/python constraints.txt
	$(PIP) torch
	@touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(PIP) --editable '.[all]'
	@touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps liger-kernel  # an oracle in tests; the triton that it would bring is not used by them
	@touch $@ .venv/demo.stamp
