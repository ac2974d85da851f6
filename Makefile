# On a fresh machine: `make demo`, `make test` and `make docs`. All make $(VENV) and install what they need first.
# `make oldest` runs a part of the tests with the oldest libraries that setup.cfg takes, in an environment of its own.
VENV ?= .venv
OLDEST ?= .venv-oldest
PYTHON ?= python3
BIN = $(VENV)/bin
PYTEST = -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SMOKE = tests/find tests/heldout tests/house/test_floors.py tests/lora tests/search tests/shrink tests/training
CODE = autolora_trainer tests benchmarks examples docs/hooks run_glue.py run_ner.py run_nlg.py setup.py

.PHONY: install demo test docs oldest style quality

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/autolora demo --overwrite

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) --durations 10

$(OLDEST)/.installed: setup.cfg constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[test]"
	touch $@

oldest: $(OLDEST)/.installed
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(PYTEST) $(SMOKE)

docs: install
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

style: install
	$(BIN)/isort $(CODE)
	$(BIN)/black $(CODE)

quality: install
	$(BIN)/isort --check-only $(CODE)
	$(BIN)/black --check $(CODE)
	$(BIN)/flake8 $(CODE)
