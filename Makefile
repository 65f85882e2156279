# `make run`, `make test` and the others do all the set-up: an environment in .venv, the package in it, then the job.
# PYTHON=...  the interpreter, 3.11 or newer      ARGS=...  more for `launch run`      PYTEST_ARGS=...  more for pytest
# WORKERS=...  processes that run the tests: 3 by default, 4 for slow ones, as some wait for others

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Files in the order of their folders, which puts those with few but long tests first.
IN_PARALLEL = -n $(or $(WORKERS),$(1)) --no-loadscope-reorder --durations=10
# Else each process that a test starts compiles all modules anew, and pytest rewrites each test module in each worker.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

BENCH_INSTALL := .venv-bench/bin/python -m pip install --disable-pip-version-check $(if $(wildcard wheels),--no-index -f wheels)

.PHONY: run test test-slow coverage soak lint docs site lock bench bench-gpu bench-gpu-wheels clean

run: $(VENV)/installed
	$(BIN)/launch run quickstart $(ARGS)

# What a change needs, in at most five minutes on two cores.
test: $(VENV)/installed-dev
	$(PYTEST) $(call IN_PARALLEL,3) -m "not slow" $(PYTEST_ARGS)

# The rest, in at most twenty-five minutes: SLURM clusters, launchers that are killed, browsers, W&B, long trainings.
test-slow: $(VENV)/installed-dev
	$(PYTEST) $(call IN_PARALLEL,4) -m slow $(PYTEST_ARGS)

# Lines and branches that `make test` runs; fails below the floor that pyproject.toml sets.
coverage: $(VENV)/installed-dev
	$(PYTEST) $(call IN_PARALLEL,3) -m "not slow" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# All tests, those of faults at their full length, for hours: kills, damage, full disks, signals; properties with more
# examples. PYTEST_ARGS=FILE... for some of them.
soak: $(VENV)/installed-dev
	SOAK=1 $(PYTEST) $(or $(PYTEST_ARGS),tests)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The tables of docs/config.md, from the configuration's models. A test compares.
docs: $(VENV)/installed
	$(BIN)/python -m trainlib.config.docs.reference docs/config.md

# The pages of docs/ as a site, in site/; fails for a link that leads nowhere.
site: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The exact versions of all that development needs, on Python 3.11 and newer; made anew when pyproject.toml changes.
lock: $(BIN)/python
	$(PIP_INSTALL) -q uv
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --extra dev --no-annotate --no-emit-index-url \
		--custom-compile-command 'make lock' pyproject.toml -o requirements-dev.lock

# Our training beside other loops, which are installed into an environment of their own: docs/performance.md.
# BENCH_ARGS='--data DIR' for class folders of pictures; the default are drawings.
bench: .venv-bench/installed
	.venv-bench/bin/python -m bench.run $(BENCH_ARGS)

# All that bench-gpu installs, into wheels/, for a machine without a network: of the same system and version of Python.
bench-gpu-wheels:
	$(PYTHON) -m pip download --disable-pip-version-check -d wheels hatchling editables . \
		-r bench/requirements.txt -r bench/requirements-gpu.txt

# On a machine with an NVIDIA GPU: the same loops there, airbench, VGG16, and where steps wait for the GPU.
bench-gpu: .venv-bench/installed-gpu
	.venv-bench/bin/python -m bench.gpu.run $(BENCH_ARGS)

.venv-bench/installed: pyproject.toml bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(BENCH_INSTALL) -e . -r bench/requirements.txt
	touch $@

.venv-bench/installed-gpu: .venv-bench/installed bench/requirements-gpu.txt
	$(BENCH_INSTALL) -r bench/requirements-gpu.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The stamps are younger than pyproject.toml as long as what it asks for is installed.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ $(VENV)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, and $(PYTHON) is not: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
