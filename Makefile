# The first target that needs it sets up .venv; later ones find it done. Another interpreter:
# `make demo PYTHON=python3.12` (before the first set-up).
PYTHON ?= python3
# Test processes side by side; tests of one xdist_group share what is expensive to build.
WORKERS ?= 2
SPREAD = -n $(WORKERS) --dist loadgroup

BIN := .venv/bin
READY := .venv/.installed

DEMO_METHODS := majority unimodal ensemble joint multiloss ogm_ge iibalance
DEMO_FOLDER := results/demo

.PHONY: help demo test test-all lint check format docs bench

help:
	@echo "make demo      run IIBalance, OGM-GE and the controls on mfeat and compare them"
	@echo "make test      run the tests that take seconds"
	@echo "make test-all  run all tests"
	@echo "make lint      ruff and mypy"
	@echo "make check     compare fresh runs with results/baselines/mfeat.yaml"
	@echo "make format    let ruff put the files in order"
	@echo "make docs      write the pages on methods from the methods' files"
	@echo "make bench     measure start-up and the harness's overhead"

demo: $(READY)
	$(BIN)/mmbench run $(DEMO_METHODS:%=--method %) --dataset mfeat --seed 0-4
	$(BIN)/mmbench compare --dataset mfeat --output $(DEMO_FOLDER)
	$(BIN)/mmbench report --dataset mfeat --output $(DEMO_FOLDER)/report.html

# One thread a process: the tests' networks are too small to share out.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# CHECK_OPTIONS=--github annotates a pull request.
check: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/mmbench check --against results/baselines/mfeat.yaml $(CHECK_OPTIONS)

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)
	$(BIN)/python docs/generate.py

bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/harness_overhead.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mmbench needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@
