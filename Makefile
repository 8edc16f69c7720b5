# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test sanitize lint bench clean

# Each stamp is remade when what it was installed from changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing spark13b into $(VENV) (about a minute, once)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# Torch's files are read and written by the tests where torch is there. It is large, so only CI asks for it by itself.
$(VENV)/.installed-torch: $(VENV)/.installed-dev
	@$(PIP_INSTALL) --editable '.[torch]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/spark13b demo

test: $(VENV)/.installed-dev $(if $(CI),$(VENV)/.installed-torch)
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The native library's tests with it compiled for the sanitizers of addresses, undefined behaviour and threads.
sanitize: $(VENV)/.installed-dev
	@$(BIN)/python tests/native/sanitize.py

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.installed-bench
	@for script in benchmarks/*.py; do echo "== $$script" >&2; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
