# Two commands are enough: `make run` explores the bundled model, `make test` proves the package. Both set up what they
# need in .venv and are quick once that is done. pip's own environment variables (index, cache, certificates) apply.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The build of torch to install first, so that nothing else pulls in a larger one. A GPU user may choose another:
#   make run TORCH="torch==2.13.0+cu130"
TORCH ?= torch==2.13.0
# Two torch threads on busy cores can be 20 times slower than one.
export OMP_NUM_THREADS ?= 1
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test soak lint bench mutation clean

run: $(INSTALLED)
	$(BIN)/spannerlm run

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

# The long loops of the fault tests in full: 220 random kills.
soak: $(INSTALLED)
	SPANNERLM_SOAK=1 $(BIN)/python -m pytest -n 2 tests/test_kills.py tests/ledger/test_crashes.py tests/faults tests/test_full_disk.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/labels.py
	$(BIN)/python benchmarks/models.py

mutation: $(INSTALLED)
	nice $(BIN)/python benchmarks/mutation.py --folder build/mutation

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
