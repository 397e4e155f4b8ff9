# `make demo` and `make test` work on a bare clone: python3 >= 3.11 with pip is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the native kernels are built from: a change installs, and so compiles, again.
KERNELS := setup.py $(wildcard foveate/ops/native/kernels/*)
BENCH_VENV := .venv-bench
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint slow claims docs bench clean

demo: $(VENV)/.installed
	$(BIN)/foveate compare forecast --out foveate-runs/demo

test: lint
	$(THREADS) $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

slow: $(VENV)/.installed-dev
	FOVEATE_LEVELS=all $(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -m pytest -m slow

# Every claim that has no result on the present sources. A quiet machine, please: some compare times.
claims: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m foveate verify --all --missing --out foveate/catalog/claims.json --page docs/claims.md

# The site, in build/site: open build/site/index.html. Nothing is fetched, neither now nor by its pages.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Peers live in an environment of their own. Options: make bench BENCH="selective_scan --threads 1".
bench: $(BENCH_VENV)/.peers
	$(THREADS) $(BENCH_VENV)/bin/python -m foveate bench $(BENCH)

$(BENCH_VENV)/.peers: pyproject.toml constraints.txt benchmarks/peers.txt $(KERNELS)
	@$(MAKE) --no-print-directory VENV=$(BENCH_VENV) $(BENCH_VENV)/.installed
	@grep -v '^#' benchmarks/peers.txt | while read -r peer; do \
		$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$peer" || \
		echo "$$peer does not install here: the benchmark goes on without it."; done
	@# A torchvision made for another torch does not import, and takes transformers with it.
	@$(BENCH_VENV)/bin/python -c "import torchvision" 2>/dev/null || \
		$(BENCH_VENV)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

# Where the venv module or its ensurepip is missing (Debian splits them off), virtualenv does the same.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("foveate needs Python 3.11 or newer, not " + sys.version.split()[0] + ": run make PYTHON=...") if sys.version_info < (3, 11) else None'
	@if $(PYTHON) -c "import venv, ensurepip" 2>/dev/null; then $(PYTHON) -m venv $(VENV); else \
		$(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
		PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -r $(VENV)-bootstrap; fi

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[series]'
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info
