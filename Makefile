# Two commands: `make demo` runs the main job, `make test` passes the tests; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test checks tests format

demo: .venv/installed
	$(BIN)/gasim demo

test: .venv/installed
	$(MAKE) --no-print-directory --jobs 2 checks tests

checks: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.tables --check

tests: .venv/installed
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 20

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
