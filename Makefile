# make train: from nothing to a trained model.  make test: from nothing to passing tests.
# make notebooks: the notebooks of docs/, which take minutes.
# make accelerator: the tests that need a GPU or TPU, on it.
# make tpu: compiles every strategy for absent TPUs, which takes minutes.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/tiny
CONFIG ?= configs/tiny.py
FLAGS ?=
TESTS ?=

.PHONY: train test notebooks accelerator tpu lint

train: $(VENV)/installed
	$(VENV)/bin/python -m experiments.train --config=$(CONFIG) --workdir=$(WORKDIR) --devices=8 $(FLAGS)

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal --ignore=tests/docs/test_notebooks.py $(TESTS)

notebooks: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -q -n 2 tests/docs/test_notebooks.py

accelerator: $(VENV)/installed-dev
	JAX_PLATFORMS= $(VENV)/bin/python -m pytest -q tests/test_accelerator.py

# libtpu lies apart from the environment, so that `make test` stays short.
tpu: $(VENV)/installed-dev
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/libtpu \
	  "libtpu==$$($(VENV)/bin/python -c 'from experiments.processes.topology import wanted_libtpu as w; print(w())')"
	PYTHONPATH=$(VENV)/libtpu $(VENV)/bin/python -m pytest -q -n 2 tests/experiments/test_tpu.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or later is needed; give one with PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
