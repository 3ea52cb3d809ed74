# make demo: the paper's Table 2, measured on the model that ships here. make test: lint, types, tests. Both build .venv by themselves.
PY := .venv/bin/python

.PHONY: demo test lint format clean

demo: .venv/installed
	$(PY) sweep.py table=blink_table2 hydra.run.dir=outputs/demo

test: lint
	$(PY) -m pytest -n auto

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# torch first: later requirements then find it and do not choose a build of their own
.venv/installed: pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# beside what running takes: linters, test tools, and the packages of the extras that tests use
.venv/installed-dev: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv outputs
