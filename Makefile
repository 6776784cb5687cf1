# Two commands do all the set-up: `make demo` and `make test`. Each creates .venv if it is not there.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= 0
CLUSTER := /tmp/metaser-slurm-test
CLUSTER_TESTS ?= cluster
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Not newer than 3.12: the oldest numpy has no wheel for it.
OLDEST_PYTHON ?= $(shell for python in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python3.12 python3.11 $(PYTHON); do \
	$$python -c "" 2>/dev/null && echo $$python && break; done)

.PHONY: demo test oldest lint bench fuzz reliability cluster clean

demo: .venv/demo-ready
	$(BIN)/metaser demo --out runs/demo

test: .venv/all-ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# On the oldest versions that pyproject.toml allows.
oldest: .venv-oldest/ready
	.venv-oldest/bin/python tests/oldest.py
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal tests/unit

lint: .venv/all-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/all-ready
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

# Damaged and hostile input for all that is read; what fails is kept in runs/fuzz, to be judged again by --replay.
fuzz: .venv/all-ready
	$(BIN)/python tests/fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --keep runs/fuzz

reliability: .venv/all-ready
	$(BIN)/python -m pytest -m "(distributed or reliability) and not cluster"
	$(MAKE) fuzz FUZZ_SECONDS=3600

# A real SLURM of two nodes on this machine (as root; installs it on Debian where it is absent), the tests on it, and away again.
cluster: .venv/all-ready
	slurm/local/up.sh --state $(CLUSTER)
	SLURM_CONF=$(CLUSTER)/slurm.conf $(BIN)/python -m pytest -m "$(CLUSTER_TESTS)"; code=$$?; slurm/local/down.sh --state $(CLUSTER); exit $$code

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-ready: pyproject.toml | .venv/bin/python
	$(PIP) --editable ".[demo]"
	touch $@

# DeepSpeed compiles its CUDA kernels when they are first needed, not here.
.venv/all-ready: pyproject.toml | .venv/bin/python
	DS_BUILD_OPS=0 $(PIP) --editable ".[all]"
	touch $@ .venv/demo-ready

.venv-oldest/ready: pyproject.toml | .venv/all-ready
	$(OLDEST_PYTHON) -m venv --clear .venv-oldest
	$(BIN)/python tests/oldest.py constraints > .venv-oldest/constraints.txt
	DS_BUILD_OPS=0 .venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable ".[all]"
	touch $@

clean:
	rm -rf .venv .venv-oldest dist runs data
