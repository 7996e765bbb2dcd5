# make            a first run: sets up, makes a small data set, trains, draws the curves
# make test       lint and the whole test suite, as CI does, two files of tests at a time
# make bench      every benchmark, in three quarters of an hour, into benchmarks/RESULTS.md
#
# Everything is installed into .venv beside this file; PIP_* variables of the environment are respected.

PYTHON := $(shell for name in python3.13 python3.12 python3.11 python3; do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done)
RUN := .venv/bin/python

.PHONY: train setup test lint bench

train: setup
	$(RUN) train.py

setup: .venv/installed

.venv/installed: setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed, none was found on PATH" \
		"(Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --no-user --disable-pip-version-check --quiet --editable ".[test]"
	touch .venv/installed

lint: setup
	$(RUN) -m ruff check .

test: lint
	$(RUN) -m tests.cuda_emulator.build
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup
	$(RUN) -m pip install --no-user --disable-pip-version-check --quiet --editable ".[bench]"
	$(RUN) -m benchmarks
