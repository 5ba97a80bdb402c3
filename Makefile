# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
# A machine needs Python 3.11 or newer and make. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

# One thread per test worker: two workers on two cores, and sums that do not depend on the core count.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n 2

.PHONY: help demo test test-long faults cluster cuda exhaustive study-smoke lint venv clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

demo: $(STAMP) ## train the quickstart run and its BF16 twin on the packaged sample, and report on both
	$(BIN)/altgrad train matrices/quickstart.yaml
	$(BIN)/altgrad train matrices/quickstart.yaml --set name=gpt-bf16 --set precision=none --set compute=bfloat16
	$(BIN)/altgrad report --project quickstart

test: lint ## lint, then every test that takes seconds
	@$(PYTEST) -m "not long and not cluster"

test-long: $(STAMP) ## the tests that take minutes
	@$(PYTEST) -m long

faults: $(STAMP) ## every campaign of faults whole, and docs/RELIABILITY.md from its figures: about half an hour
	@$(TEST_ENV) PYTHONPATH=. $(BIN)/python -m tests.faults

cluster: $(STAMP) ## sweeps on a one-node Slurm that the tests start: as root, after apt install slurm-wlm munge
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt ray
	@$(TEST_ENV) $(BIN)/python -m pytest -m cluster tests/cluster

cuda: $(STAMP) ## the tests that need a GPU; skipped without one
	@$(TEST_ENV) $(BIN)/python -m pytest -n 4 -m cuda

exhaustive: $(STAMP) ## casts on all 2^32 float32 patterns, every 8-bit format: about 20 minutes; goes on where it stopped
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.exhaustive

study-smoke: $(STAMP) ## whether the study's main findings keep their direction on fresh seeds: some minutes
	@$(BIN)/python -m study.smoke

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

venv: $(STAMP) ## the pinned install alone

clean: ## remove what make made; runs/ stays
	rm -rf .venv build .exhaustive *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find altgrad tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again; an environment without a working pip is made
# anew, and one that works is kept, since two interpreters over one folder break it. setuptools is installed first and
# used without build isolation: an isolated build would fetch whatever release is newest.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "AltGrad needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there); name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into .venv (a minute or two; torch is most of it)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
