# On a fresh machine: `make demo`, `make test` and `make docs`. All make $(VENV) and install what they need first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
CODE = autolora_trainer tests benchmarks examples docs/hooks run_glue.py run_ner.py run_nlg.py setup.py

.PHONY: install demo test docs style quality

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/autolora demo --overwrite

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10

docs: install
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

style: install
	$(BIN)/isort $(CODE)
	$(BIN)/black $(CODE)

quality: install
	$(BIN)/isort --check-only $(CODE)
	$(BIN)/black --check $(CODE)
	$(BIN)/flake8 $(CODE)
