# make study      train the quickstart study, in minutes
# make check      lint, types and fast tests, in 2 minutes
# make test       the same with medium tests and the documentation, in 8 minutes
# make test-slow  tests with many cases and injected faults
# make test-all   both
# make cluster    tests of a Ray cluster and of several ranks
# make soak       kill a study two hundred times, in a quarter of an hour
# make gpu        tests that need a graphics card, then benchmarks into results/bench/CARD
# make docs       build the documentation site in docs/_build/html
# make drawing    draw the packages and their imports
# make notebooks  execute the notebooks on the committed results
# make readmes    write all pages and pictures that are computed from rows
# make pages      write the report of every committed study
# make pictures   draw the reference pictures of the tests
# make golden     count all networks for the reference counts of the tests
# make audit      check pinned versions for known vulnerabilities
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
STUDY ?= experiments/quickstart.toml

.PHONY: study test test-slow test-all check lint types docs drawing notebooks pictures readmes pages golden audit cluster gpu soak clean
.DEFAULT_GOAL := check

study: .venv/for-use
	$(BIN)/spectrum run $(STUDY)

check: lint types
	$(PYTEST) -m "not medium and not slow and not cluster"

test: .venv/for-development
	$(MAKE) --jobs 2 lint types docs
	SPECTRUM_SITE=docs/_build/html $(PYTEST) -m "not slow and not cluster"

test-slow: .venv/for-development
	$(PYTEST) -m "slow and not cluster"

test-all: test test-slow

lint: .venv/for-development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/for-development
	$(BIN)/mypy

.venv/for-use: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@echo "installing spectrum and what it needs into .venv (once, some minutes) ..."
	$(INSTALL) --editable .
	@touch $@

.venv/for-development: .venv/for-use
	$(INSTALL) --editable '.[dev]'
	@touch $@

pictures: .venv/for-development
	$(BIN)/python -m pytest tests/analysis/test_pictures.py --mpl-generate-path=tests/analysis/pictures

docs: .venv/for-development
	@rm -rf docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

drawing: .venv/for-development
	$(BIN)/python docs/packages.py

notebooks: .venv/for-development
	$(BIN)/python notebooks/execute.py

audit: .venv/for-development
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

cluster: .venv/for-development
	$(BIN)/python -m pytest -m cluster

gpu: .venv/for-development
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch sees no CUDA card here, so nothing was tested or measured.")'
	$(BIN)/python -m pytest -m gpu -rs
	for bench in "op" "op --dtype float16" "train" "sweep" "models"; do $(BIN)/spectrum bench $$bench --device cuda || exit 1; done

soak: .venv/for-development
	$(BIN)/python -m pytest tests/soak.py -s

golden: .venv/for-development
	$(BIN)/python -m tests.models.golden

readmes: .venv/for-development
	$(BIN)/python docs/_ext/reference.py
	$(BIN)/python results/readmes.py
	$(BIN)/python results/rows.py
	$(BIN)/python results/pictures.py

pages: .venv/for-use
	for plan in results/*/plan.json; do \
		test "$$plan" = results/quickstart/plan.json || $(BIN)/spectrum report experiments/$$(basename $$(dirname $$plan)).toml || exit 1; \
	done

clean:
	rm -rf .venv
