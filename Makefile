# Two commands: `make demo` runs the whole pipeline, `make test` checks the code. Both set up .venv first.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS ?= ignore
define install # .venv with the packages of an extra
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lowenergy needs Python >= 3.11; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(1)]'
endef
define compile # byte code of the packages, as pip writes it, but on all cores and without their tests
	@test .venv/compiled -nt .venv/ready || { echo "compiling packages"; \
		.venv/bin/python -m compileall -qq -j 0 -x '/(tests?|testing/_internal)/' .venv/lib; touch .venv/compiled; } || true
endef

.PHONY: demo test test-all lint tests slow-tests coverage docs setup clean

demo: .venv/ready # what is imported gets byte code on the way, which takes less than compiling all packages
	PYTHONDONTWRITEBYTECODE= lowenergy run
	@lowenergy table
	@echo "Report: $(CURDIR)/report.html"

test: setup # minutes
	@$(MAKE) --no-print-directory --jobs 2 lint tests

test-all: test slow-tests # and twenty minutes more: what a change of the runner or of a method should pass

lint:
	ruff check .
	ruff format --check .
	mypy

tests:
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup -m "not slow"

slow-tests:
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup -m slow

coverage: setup # half as long again: what stages and workers run is counted, too
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadgroup --cov --cov-report=term

docs: setup # the site, into site/; a dead link or a page without a way to it is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

setup: .venv/ready-to-test
	$(compile)

.venv/ready-to-test: pyproject.toml constraints.txt
	$(call install,dev)
	touch .venv/ready $@

.venv/ready: pyproject.toml constraints.txt
	$(call install,search)
	touch $@

clean:
	rm -rf .venv .checkpoints site
