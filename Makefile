PYTHON := .venv/bin/python

.PHONY: help setup demo demo-shell test check bench

help:
	@echo "make demo        boot Debian's kernel in a VM, show its console, prove it, power off"
	@echo "make demo-shell  the same, with the guest's shell on this terminal"
	@echo "make test        run all the tests (ARGS=... goes to pytest)"
	@echo "make check       lint, types and layers only"
	@echo "make bench       measure, each figure beside QEMU's"
	@echo "make setup       only what the others do first"

setup:
	@tools/setup.sh

demo: setup
	@$(PYTHON) -m tools.demo

demo-shell: setup
	@$(PYTHON) -m tools.demo --shell

test: setup
	$(PYTHON) -m pytest $(ARGS)

check: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m tools.layers

bench: setup
	$(PYTHON) -m tools.bench
