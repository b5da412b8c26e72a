# Everything runs in its own environment, .venv, which is built on first use.
#
#   PYTHON    the interpreter that .venv is built from (3.10 or newer)
#   PIP_ARGS  passed on to `pip install`. On Linux a plain install brings the CUDA build of PyTorch; for the
#             smaller CPU build: make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=

# The recipes of the embedded networks, python -m outsourced.zoo.NAME; the others are judged by the first two.
ZOO := fashion_classifier fashion_features fashion_vae fashion_hvae fashion_gan fashion_flow fashion_cnf fashion_sd

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow lint zoo clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## build .venv with the package and its development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "PYTHON must be 3.10 or newer, got " + sys.version.split()[0] + "; try: make env PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## train a small sampler and draw posterior samples with it
	$(BIN)/python train.py experiment=demo
	$(BIN)/python sample.py run=runs/demo n=16 figure=runs/demo/samples.png

# One thread: with several, PyTorch spends longer waiting than computing on problems this small.
test: $(STAMP)  ## run the fast tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)  ## run the slow tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy outsourced benchmarks

zoo: $(STAMP)  ## train every embedded network again; ZOO="NAME ..." for some
	for name in $(ZOO); do $(BIN)/python -m outsourced.zoo.$$name || exit 1; done
	$(BIN)/python -m benchmarks.zoo

clean:  ## remove .venv, caches and build outputs (runs/ is kept)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
