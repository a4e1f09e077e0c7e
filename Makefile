# `make demo` draws a picture, `make test` runs all checks; both make the environment first, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test evaluate bench guides lessons docs clean

demo: .venv/.installed
	@mkdir -p out
	@$(BIN)/gradina "a teddy bear on a pink background" --seed 1024 --output out/bear.png --quiet > /dev/null
	@echo "Your picture: $(CURDIR)/out/bear.png"

test: .venv/.installed-dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

evaluate: .venv/.installed-dev
	$(BIN)/python evaluation/digits.py
	$(BIN)/python evaluation/emoji.py

bench: .venv/.installed-dev
	$(BIN)/gradina bench --output benchmarks/bench.json --plot benchmarks/bench.png

guides: .venv/.installed
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; cd docs/guides && mkdir -p pictures && rm -rf runs; \
	for each in README lora finetune inversion dreambooth imagic; do echo "does as $$each.md says"; \
		awk '/^```/ {on = /^```sh/; next} on' $$each.md | sh -e || exit 1; done

lessons: .venv/.installed-lessons
	@export PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/lessons"; mkdir -p out/lessons docs/lessons; \
	for each in lessons/[0-9]*.py; do name=$$(basename $$each .py); echo "executes $$each"; \
		$(BIN)/jupytext --quiet --to ipynb --execute --output out/lessons/$$name.ipynb $$each && \
		$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --output-dir docs/lessons out/lessons/$$name.ipynb \
		|| exit 1; done
	@$(BIN)/python tools/smaller_pictures.py docs/lessons

docs: .venv/.installed-docs
	$(BIN)/python -m sphinx --quiet --fresh-env --write-all --fail-on-warning --keep-going -c docs . out/site
	@echo "The documentation: $(CURDIR)/out/site/index.html"

.venv/.python:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python $(INPUTS)
	$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.python $(INPUTS)
	$(PIP) --editable '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-docs: .venv/.python $(INPUTS)
	$(PIP) --editable '.[docs]'
	@touch .venv/.installed $@

.venv/.installed-lessons: .venv/.installed-dev
	$(PIP) --editable '.[lessons]'
	@touch $@

clean:
	rm -rf .venv out
