# make demo   sample from the bundled checkpoint, beside plain masked diffusion at the same cost
# make test   every check: lint, format, types, tests

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_OPTIONS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test format clean

demo: $(VENV)/.installed
	$(BIN)/selfspec demo

test: $(VENV)/.checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

format: $(VENV)/.checks
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV)

# PyTorch first: asked for by another package, pip may take a build for another machine.
$(VENV)/.installed: requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_OPTIONS) $(TORCH)
	$(PIP) -r requirements/lock.txt
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.checks: $(VENV)/.installed requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	touch $@
