# make demo: set up and run alanine dipeptide end to end.   make test: set up and run all tests.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ENGINE := $(VENV)/engine/usr/bin
OUT ?= runs/alanine-dipeptide
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test lint clean packages
help:
	@grep '^# make' Makefile | sed 's/^# //; s/   make/\nmake/g'

# Debian splits venv off python3: where it is missing and we are root, fetch it
$(BIN)/python:
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "Python 3.11 or newer is needed (PYTHON=... names one)"; exit 1; fi
	@if ! $(PYTHON) -m venv $(VENV) >/dev/null 2>&1; then \
	  rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv python3-pip; fi; \
	  $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: install python3-venv"; exit 1; }; fi

# the kernel of the batched engine wants a C++ compiler; without one the package works, several times slower
.PHONY: compiler
compiler:
	@if ! command -v c++ >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && apt-get install -y -qq --no-install-recommends g++) >/dev/null 2>&1 || true; fi; \
	command -v c++ >/dev/null || echo "SKIPPED: no C++ compiler; energies and dynamics of many copies run in torch"

# torch first and exactly, so that nothing below chooses another build of it
$(VENV)/.demo: setup.py constraints.txt $(wildcard hpc_molgen/dynamics/kernel/*.h hpc_molgen/dynamics/kernel/*.cpp) | $(BIN)/python compiler
	@echo "installing pinned dependencies into $(VENV)"
	@$(PIP) install torch==2.13.0
	@$(PIP) install -c constraints.txt -e '.[mpi]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@$(PIP) install -c constraints.txt -e '.[test,dev]'
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/hpc-molgen run alanine-dipeptide --out $(OUT) || [ $$? = 3 ]  # 3: finished, and the report says why it is not certified

# what tests run that pip does not bring, from Debian's packages where we may install them: Slurm, GROMACS for its engine, and
# Apptainer with what it builds images with
.PHONY: engine
engine: $(BIN)/python
	@PATH="$$PATH:/usr/sbin:$(ENGINE)"; have() { command -v "$$1" >/dev/null; }; \
	if (have apptainer || have singularity) && have debootstrap && have mksquashfs && have squashfuse && have newuidmap; then exit 0; fi; \
	if ! { [ "$$(id -u)" = 0 ] && have apt-get; }; then \
	  echo "SKIPPED: Apptainer or what builds its images is absent and may not be installed here; tests of images will be skipped"; \
	elif ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	      debootstrap squashfs-tools squashfuse uidmap && \
	    { have apptainer || have singularity || $(BIN)/python containers/get_apptainer.py $(VENV)/engine; }; } >$(VENV)/engine.log 2>&1; then \
	  tail -n 3 $(VENV)/engine.log; echo "SKIPPED: Apptainer could not be installed; tests of images will be skipped"; fi

packages: engine
	@if command -v slurmctld >/dev/null && command -v munged >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge) \
	    >/dev/null 2>&1 || echo "SKIPPED: Slurm could not be installed; tests/slurm will be skipped"; \
	else echo "SKIPPED: Slurm is absent and may not be installed here; tests/slurm will be skipped"; fi
	@if command -v gmx >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gromacs) \
	    >/dev/null 2>&1 || echo "SKIPPED: GROMACS could not be installed; the tests of its engine will be skipped"; \
	else echo "SKIPPED: GROMACS is absent and may not be installed here; the tests of its engine will be skipped"; fi

# two files at once: many tests wait for a process; a file stays in one process, so there is one Slurm cluster
PYTEST_ARGS ?= -n 2 --dist loadfile
test: $(VENV)/.test packages
	@PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(ENGINE):$$PATH" $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	@$(BIN)/ruff check hpc_molgen tests containers benchmarks setup.py
	@$(BIN)/ruff format --check hpc_molgen tests containers benchmarks setup.py
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache
	@$(BIN)/shellcheck -x .ci/run slurm/*.sbatch slurm/*.sh containers/*.sh hpc_molgen/launch/job.sh

clean:
	rm -rf $(VENV) build hpc_molgen/dynamics/kernel/*.so *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
