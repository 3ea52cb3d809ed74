# make demo: the paper's Table 2, and what a closer look is worth, measured on the model that ships here. make test: lint, types, docs, and the tests that take seconds.
# make test-slow: the tests that take longer: processes that are killed, trainings, tables, the wheel. All build .venv by themselves.
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Processes import compiled files: where the environment forbids writing them, each would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint audit bytecode format clean

demo: .venv/installed
	$(PY) sweep.py table=blink_table2 limit=300 hydra.run.dir=outputs/demo

test: .venv/installed-dev
	$(MAKE) --jobs 2 lint bytecode
	$(PY) -m pytest -m "not slow" -n auto --dist worksteal

test-slow: .venv/installed-dev
	$(PY) -m pytest -m slow -n auto --dist worksteal

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) tools/audit.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# licences of what is installed, and known vulnerabilities where pip-audit is installed and its service answers; lint runs it too
audit: .venv/installed-dev
	$(PY) tools/audit.py --list

# compiles what tests import while mypy, which takes one core, runs; a test that cannot be imported is pytest's to report
bytecode: .venv/installed-dev
	-@$(PY) -m pytest --collect-only -n 0 > /dev/null

format: .venv/installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# torch first: later requirements then find it and do not choose a build of their own; files are compiled when they are first imported
define install
	test -x $(PY) || python3 -m venv .venv
	$(PIP) torch
	$(PIP) --editable "$(1)"
endef

.venv/installed: pyproject.toml constraints.txt
	$(call install,.)
	touch $@

# beside what running takes: linters, test tools, and the packages of the extras that tests use
.venv/installed-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch .venv/installed $@

clean:
	rm -rf .venv outputs
