# Two commands: `make demo` runs the whole pipeline, `make test` checks the code. Both set up .venv first.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS ?= ignore
define install # .venv with the packages of an extra; modules are compiled when they are first imported, not all of them now
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lowenergy needs Python >= 3.11; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(1)]'
endef

.PHONY: demo test lint tests coverage setup clean

demo: .venv/ready
	lowenergy run
	@lowenergy table
	@echo "Report: $(CURDIR)/report.html"

test: setup
	@$(MAKE) --no-print-directory --jobs 2 lint tests

lint:
	ruff check .
	ruff format --check .
	mypy

tests:
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup

coverage: setup # half as long again: what stages and workers run is counted, too
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup --cov --cov-report=term

setup: .venv/ready-to-test

.venv/ready-to-test: pyproject.toml constraints.txt
	$(call install,dev)
	touch .venv/ready $@

.venv/ready: pyproject.toml constraints.txt
	$(call install,search)
	touch $@

clean:
	rm -rf .venv .checkpoints
