# make run    train MixSupCon on bundled images and draw what it learned
# make check  the everyday loop, within a minute: ruff and the fast tests
# make test   everything continuous integration does, just under ten minutes on two idle cores
# make paper  every table and figure: the grid of experiments, then outputs/report (SCALE=paper for the published recipe)
# make report the same tables and figures from the finished runs, or from the last report's records of them
#             (REPLACE=fewer to replace a report that shows more runs than there are now)
# make notebooks  run the library's notebooks again and keep their outputs (NOTEBOOKS="nbs/core/01_mixers.ipynb" for some)
# make docs   the notebooks, the tutorials and the reference as a site in _docs, without a network
# make lab    JupyterLab on the notebooks
# make clean  remove caches and what setuptools and nbdev leave behind

PYTHON ?= python3
BIN := .venv/bin
SCALE ?= small
REPLACE ?= equal
CORES ?= all
# an environment that forbids bytecode, as many containers' do, would have each process compile the tests anew
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder
USER_ID = $(shell id -u)
MEMORY = $(shell $(BIN)/python -c "import os; print(int(.8*os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE')/2**20))")

.PHONY: run check test paper report notebooks docs lab clean setup
.DELETE_ON_ERROR:

run: setup
	$(BIN)/papermill nbs/run_experiment.ipynb -p method mixsupcon

check: setup
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

# nbdev_test is among the tests: tests/test_notebooks.py has it run each notebook, and compares what the cells show
test: setup
	$(BIN)/ruff check .
	$(PYTEST) --durations 10

# a second call goes on where the first stopped; what failed is named at the end, and the report is written all the same
paper: setup
	@$(BIN)/snakemake --cores $(CORES) --resources mem_mb=$(MEMORY) gpu=1 --config scale=$(SCALE) \
		--keep-going --rerun-incomplete --nolock --quiet rules reason host; ended=$$?; \
	$(BIN)/papermill --no-progress-bar nbs/report.ipynb -p scale $(SCALE) -p replace $(REPLACE) && exit $$ended

report: setup
	$(BIN)/papermill --no-progress-bar nbs/report.ipynb -p scale $(SCALE) -p replace $(REPLACE)

notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/programs/notebooks.py $(NOTEBOOKS)

docs: setup
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going docs _docs
	@echo "the site is _docs/index.html; its search shows excerpts only through a server:"
	@echo "  .venv/bin/python -m http.server -d _docs 8000, then http://localhost:8000"

# Jupyter refuses root, as one is in a container, unless told otherwise; LAB="--ip 0.0.0.0 --port 9999" adds options
lab: setup
	@test $(USER_ID) != 0 || echo "you are root, as in a container: JupyterLab starts with --allow-root and without a browser; open one of the URLs that it prints"
	$(BIN)/jupyter lab --notebook-dir nbs --KernelManager.transport_encryption=auto $(if $(filter 0,$(USER_ID)),--allow-root --no-browser) $(LAB)

clean:
	rm -rf .pytest_cache .ruff_cache .snakemake _proc _docs jupyter_execute docs/api docs/nbs build *.egg-info
	find nbs mixsupcon tests -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

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
