# make                 a first run: creates .venv, makes a small data set, trains, predicts, writes a report
# make test            lint, the whole test suite, and the compatibility tests on every other supported Python found
# make compatibility   the compatibility tests only
# make check           lint, types and the fast tests: less than 2 minutes, before each commit
# make lint            ruff and mypy
# make sanitize        the C kernels under the sanitizers of GCC, 20 minutes on an idle machine
# make docs            the documentation as web pages: docs/_build/html/index.html
# make notebook        executes docs/notebook.ipynb again, about 3 minutes
# make fuzz            searches for files on which a reader of foreign files fails, about 10 minutes
# make bench           all benchmarks, about 45 minutes, into benchmarks/RESULTS.md
#
# .venv uses the newest supported Python found (tests/interpreters.sh), unless it exists already. With
# PYTHON=python3.12, any of these commands uses that interpreter, in an environment of its own: .venv-3.12.

ifeq ($(origin PYTHON),command line)
VENV := .venv-$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
VENV := .venv
PYTHON = $(eval PYTHON := $(or $(word 2,$(shell sh tests/interpreters.sh)),python3))$(PYTHON)
endif
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2

# The tests start more than a thousand processes; without stored bytecode each would compile the modules again.
unexport PYTHONDONTWRITEBYTECODE

PIP := $(RUN) -m pip install --no-user --disable-pip-version-check
.PHONY: train setup setup-tests test check lint compatibility compatibility-one sanitize docs notebook fuzz bench

train: setup
	$(RUN) train.py
	@run=$$(ls -td runs/*/ | head -n 1) && run=$${run%/} && echo "Guesses of $$run for three held-out pictures:" && \
	$(RUN) -m alexnet predict --weights "$$run" data/synthetic/images/val/ILSVRC2012_val_0000000[123].JPEG && \
	echo "Report, to open in a browser: $$run/report.html"

# What training needs. The tests, the documentation and the benchmarks add theirs to the same environment.
setup: $(VENV)/installed

setup-tests: $(VENV)/installed-test

$(VENV)/installed: setup.py pyproject.toml
	@test -x $(RUN) || "$(PYTHON)" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11, 3.12 or 3.13 with its venv module is needed, got $(PYTHON)" \
		"(Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	test -x $(RUN) || "$(PYTHON)" -m venv $(VENV)
	@echo "installing what training needs into $(VENV): about 150 MB to download, 600 MB on the disk"
	$(PIP) --editable .
	touch $@

# The target's name ends in the extra's: test, docs, fuzz or bench.
$(VENV)/installed-%: $(VENV)/installed
	@echo "installing what the target $* needs into $(VENV)"
	$(PIP) --editable ".[$*]"
	touch $@

lint: setup-tests
	$(RUN) -m ruff check .
	$(RUN) -m mypy

check: lint
	$(PYTEST) -m "not slow and not mpi and not system" --dist worksteal

test: lint
	$(RUN) -m tests.cuda_emulator.build
	$(PYTEST) --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory compatibility

# Each other version has its own environment and its own line of make.
compatibility: setup-tests
	@whole=$$($(RUN) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	others=$$(sh tests/interpreters.sh | grep -v "^$$whole ") || { \
		echo "compatibility: no supported Python besides $$whole on PATH or under pyenv's versions"; exit 0; } && \
	echo "$$others" | while read -r version python; do \
		echo "compatibility: Python $$version ($$python)" && \
		$(MAKE) --no-print-directory compatibility-one PYTHON="$$python" </dev/null || exit 1; \
	done

compatibility-one: setup-tests
	$(PYTEST) --dist worksteal -m compatibility

sanitize: setup-tests
	$(RUN) -m tests.fuzz.sanitizers

# -W: every warning is an error, such as a link to a file or a heading that does not exist.
docs: $(VENV)/installed-docs
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

notebook: $(VENV)/installed-docs
	$(RUN) -m jupyter execute --inplace docs/notebook.ipynb

fuzz: $(VENV)/installed-fuzz
	$(RUN) -m tests.fuzz

bench: setup-tests $(VENV)/installed-bench
	$(RUN) -m benchmarks
