# make run   train MixSupCon on bundled images and draw what it learned
# make test  everything continuous integration does
# make lab   JupyterLab on the notebooks

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lab setup
.DELETE_ON_ERROR:

run: setup
	$(BIN)/papermill nbs/run_experiment.ipynb -p method mixsupcon

test: setup
	$(BIN)/pytest tests/test_repository.py
	$(BIN)/ruff check --select F mixsupcon
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 0 --do_print
	$(BIN)/pytest tests --ignore tests/test_repository.py

lab: setup
	$(BIN)/jupyter lab --notebook-dir nbs

setup: .venv/installed

# uv takes half a minute where pip takes three; where uv cannot be had, pip does the same
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "mixsupcon needs Python 3.11, 3.12 or 3.13: try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (PyTorch is several GB: a few minutes, once)"
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; \
	then $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; fi
	@touch $@
