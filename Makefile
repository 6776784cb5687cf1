# Two commands do all the set-up: `make demo` and `make test`. Each creates .venv if it is not there.
PYTHON ?= python3
BIN := .venv/bin
CLUSTER := /tmp/metaser-slurm-test
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench reliability cluster clean

demo: .venv/demo-ready
	$(BIN)/metaser demo --out runs/demo

test: .venv/all-ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/all-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/all-ready
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

reliability: .venv/all-ready
	$(BIN)/python -m pytest -m "distributed or reliability"

# A real SLURM of two nodes on this machine (as root; installs it on Debian where it is absent), the tests on it, and away again.
cluster: .venv/all-ready
	slurm/local/up.sh --state $(CLUSTER)
	SLURM_CONF=$(CLUSTER)/slurm.conf $(BIN)/python -m pytest -m cluster; code=$$?; slurm/local/down.sh --state $(CLUSTER); exit $$code

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-ready: pyproject.toml | .venv/bin/python
	$(PIP) --editable ".[demo]"
	touch $@

# DeepSpeed compiles its CUDA kernels when they are first needed, not here.
.venv/all-ready: pyproject.toml | .venv/bin/python
	DS_BUILD_OPS=0 $(PIP) --editable ".[all]"
	touch $@ .venv/demo-ready

clean:
	rm -rf .venv dist runs data
