# Two commands: `make demo` runs the whole pipeline, `make test` checks the code. Both set up .venv first.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS ?= ignore

.PHONY: demo test coverage setup clean

demo: setup
	lowenergy run
	@lowenergy table
	@echo "Report: $(CURDIR)/report.html"

test: setup
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup

coverage: setup # half as long again: what stages and workers run is counted, too
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup --cov --cov-report=term

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lowenergy needs Python >= 3.11; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .checkpoints
