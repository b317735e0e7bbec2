# make run    train MixSupCon on bundled images and draw what it learned
# make test   everything continuous integration does
# make paper  every table and figure: the grid of experiments, then outputs/report (SCALE=paper for the published recipe)
# make report the same tables and figures from the runs that are there
# make lab    JupyterLab on the notebooks

PYTHON ?= python3
BIN := .venv/bin
SCALE ?= small
CORES ?= all
MEMORY = $(shell $(BIN)/python -c "import os; print(int(.8*os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE')/2**20))")

.PHONY: run test paper report lab setup
.DELETE_ON_ERROR:

run: setup
	$(BIN)/papermill nbs/run_experiment.ipynb -p method mixsupcon

test: setup
	$(BIN)/pytest tests/test_repository.py
	$(BIN)/ruff check --select F mixsupcon
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 0 --do_print
	$(BIN)/pytest tests --ignore tests/test_repository.py

# a second call goes on where the first stopped; what failed is named at the end, and the report is written all the same
paper: setup
	@$(BIN)/snakemake --cores $(CORES) --resources mem_mb=$(MEMORY) gpu=1 --config scale=$(SCALE) \
		--keep-going --rerun-incomplete --nolock --quiet rules reason host; ended=$$?; \
	$(BIN)/papermill --no-progress-bar nbs/report.ipynb -p scale $(SCALE) && exit $$ended

report: setup
	$(BIN)/papermill --no-progress-bar nbs/report.ipynb -p scale $(SCALE)

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
